"""The operators, with schemas, fakes and autograd: functions, blends and the APTx neuron."""
