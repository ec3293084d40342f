"""The operators, with their schemas, fakes and autograd: functions, blends and the APTx neuron."""
