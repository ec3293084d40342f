"""What the documentation of every function says about the arguments that all of them have."""

INPUT = """\
input : Tensor
    of float32, float64, bfloat16 or float16, and any shape and strides; others go to
    torch's own function, if it takes them"""
OPTIONS = """\
inplace : bool, default False
    write the result over the input; backward then uses the output and one bit an element, or,
    with ``save="copy"``, a copy of the input
save : "input", "output" or "copy", default "input"
    what is kept for backward: the input (the exact gradient, any number of derivatives); the
    output, which the next layer usually keeps anyway, and one bit an element (first derivative
    only); or a copy of the input, for where later code writes over the input or the result"""
OUT = """\
out : Tensor, optional
    where to write the result, of the input's shape and dtype; not with autograd"""
