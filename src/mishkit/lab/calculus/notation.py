"""Write expressions as people do, in one line of Unicode."""

from __future__ import annotations

import re
from decimal import Decimal, localcontext

import sympy
from sympy.printing.str import StrPrinter

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_LONG = 1000
"""A fraction with a larger denominator is written as a decimal, if that terminates."""


class _Printer(StrPrinter):
    def _print_Rational(self, number: sympy.Rational) -> str:
        return decimal(number) or super()._print_Rational(number)


def decimal(number: sympy.Rational) -> str | None:
    """A long fraction as an exact decimal; None for short fractions and endless decimals."""
    denominator = number.q
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    if number.q <= _LONG or denominator != 1:
        return None
    with localcontext() as context:
        context.prec = 60
        text = str(Decimal(number.p) / Decimal(number.q))
    return text if "E" not in text else None


def unicode(expression: sympy.Expr) -> str:
    """The expression in Unicode, for example x·eˣ/(eˣ + 1)²."""
    text = _Printer({"order": None}).doprint(_with_decimals(expression))
    text = re.sub(r"\*\*(-?\d+)\b", lambda m: m[1].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"sqrt\((\w+)\)", r"√\1", text).replace("sqrt(", "√(").replace("**", "^")
    text = re.sub(r"\bexp\((\d*)\*?x\)", lambda m: f"e{m[1].translate(_SUPERSCRIPTS)}ˣ", text)
    for old, new in ((r"\bpi\b", "π"), (r"\blog\(", "ln("), (r"\*", "·"), ("-", "−")):
        text = re.sub(old, new, text)
    return text


def latex(expression: sympy.Expr) -> str:
    """The expression in LaTeX, for maths mode."""
    return str(sympy.latex(_with_decimals(expression), ln_notation=True))


def _with_decimals(expression: sympy.Expr) -> sympy.Expr:
    long = {n: decimal(n) for n in expression.atoms(sympy.Rational)}
    return expression.xreplace(
        {number: sympy.Symbol(text) for number, text in long.items() if text}
    )
