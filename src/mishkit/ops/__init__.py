"""The operators, with schemas, fakes and autograd: activation functions, blends and the APTx
neuron.
"""
