"""Formulas for people: unicode for the terminal, LaTeX for paper."""

import re
from typing import Any

from sympy import Add, Expr, Mul, Sum
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from minibeft.proofs.relation import Quantity, Relation

SUBSCRIPTS = "0123456789aehijklmnoprstuvx'"
SUBSCRIPT = str.maketrans(SUBSCRIPTS, "₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ′")
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
LINE = 72

# How each character outside of ASCII that our texts and names use is written in LaTeX's math mode.
MATH = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon", "η": r"\eta", "θ": r"\theta",
    "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "ρ": r"\rho", "σ": r"\sigma", "τ": r"\tau", "φ": r"\varphi",
    "ω": r"\omega", "Δ": r"\Delta", "Σ": r"\Sigma", "∂": r"\partial ", "∞": r"\infty", "ℓ": r"\ell", "ℝ": r"\mathbf{R}",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≪": r"\ll ", "≫": r"\gg ", "→": r"\to ", "∝": r"\propto ",
    "∠": r"\angle ", "∘": r"\circ ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "±": r"\pm ", "∓": r"\mp ",
    "−": "-", "√": r"\surd ", "‖": r"\|", "⟨": r"\langle ", "⟩": r"\rangle ", "°": r"^{\circ}", "…": r"\ldots ",
    "ᵀ": r"^{\mathsf T}", "⁺": "^{+}", "⁻": "^{-}", "¹": "^{1}", "²": "^{2}", "³": "^{3}", "ᵗ": "^{t}", "ᵖ": "^{p}",
    "⁰": "^{0}", "ẑ": r"\hat{z}", "ĝ": r"\hat{g}", "§": r"\S ", "ᵈ": "^{d}", "ℤ": r"\mathbf{Z}", "π": r"\pi", "′": "'",
    "¼": r"\tfrac14 ", "ψ": r"\psi ",
}  # fmt: skip
MATH |= {chr(SUBSCRIPT[ord(char)]): f"_{{{char}}}" for char in SUBSCRIPTS.rstrip("'")}
ACCENTS = {"\u0302": r"\hat", "\u0303": r"\tilde", "\u0304": r"\bar"}  # combining characters, after their letter
ACCENTED = r"(\w)([\u0302-\u0304])"


class Unicode(StrPrinter):
    """sympy's one-line printer with Σ, indices as subscripts, and powers as superscripts: Σₐ qᵢₐ², exp(zᵢⱼ)."""

    printmethod = "_unicode"  # Indexed brings a printer of its own for the usual one

    def _print_Indexed(self, expr: Expr) -> str:
        names = [str(index) for index in expr.indices]
        if set("".join(names)) <= set(SUBSCRIPTS):
            return str(expr.base) + "".join(names).translate(SUBSCRIPT)
        return f"{expr.base}[{', '.join(names)}]"

    def _print_Sum(self, expr: Sum) -> str:
        indices = "".join(f"Σ{str(name).translate(SUBSCRIPT)}" for name, _, _ in expr.limits)
        return f"{indices} {self.parenthesize(expr.function, PRECEDENCE['Mul'])}"

    def _print_KroneckerDelta(self, expr: Expr) -> str:
        return "δ" + "".join(str(index) for index in expr.args).translate(SUBSCRIPT)

    def _print_Limit(self, expr: Expr) -> str:
        body, variable, point, _ = expr.args
        return f"lim {variable}→{self._print(point)} of {self._print(body)}"

    def _print_Derivative(self, expr: Expr) -> str:
        return f"∂/∂{self._print(expr.variables[0])} ({self._print(expr.expr)})"

    def _print_Subs(self, expr: Expr) -> str:
        pairs = zip(expr.args[1], expr.args[2], strict=True)
        point = ", ".join(f"{self._print(x)} = {self._print(y)}" for x, y in pairs)
        return f"({self._print(expr.args[0])} at {point})"

    def _print_Min(self, expr: Expr) -> str:
        return f"min({', '.join(sorted(map(self._print, expr.args)))})"

    def _print_Max(self, expr: Expr) -> str:
        return f"max({', '.join(sorted(map(self._print, expr.args)))})"

    def _print_Exp1(self, _: Expr) -> str:
        return "e"

    def _print_Pi(self, _: Expr) -> str:
        return "π"

    def _print_Infinity(self, _: Expr) -> str:
        return "∞"

    def _print_Abs(self, expr: Expr) -> str:
        return f"|{self._print(expr.args[0])}|"

    def parenthesize(self, item: Expr, level: int, strict: bool = False) -> str:
        """The body of a Σ extends to the end of its line, so within a product or a power the Σ is put in brackets."""
        if isinstance(item, Sum) and level >= PRECEDENCE["Mul"]:
            return f"({self._print(item)})"
        return super().parenthesize(item, level, strict=strict)

    def doprint(self, expr: Expr) -> str:
        line = super().doprint(expr)
        line = re.sub(r"\*\*(\d)\b", lambda found: found[1].translate(SUPERSCRIPT), line)
        return line.replace("**", "^").replace("*", "·").replace("sqrt", "√").replace(" - ", " − ")


class Latex(LatexPrinter):
    """sympy's LaTeX printer for names in unicode."""

    def _print_Symbol(self, expr: Expr, style: str = "plain") -> str:
        return math(str(expr))

    def _print_ExpBase(self, expr: Expr, exp: str | None = None) -> str:
        """An expression that is too tall for an exponent is written after exp."""
        if exp is None and expr.has(Sum):
            return rf"\exp\left({self._print(expr.args[0])}\right)"
        return super()._print_ExpBase(expr, exp)

    def _print_Indexed(self, expr: Expr) -> str:
        return f"{{{math(str(expr.base))}}}_{{{' '.join(self._print(index) for index in expr.indices)}}}"


def math(name: str) -> str:
    """A name in LaTeX's math mode."""
    name = re.sub(ACCENTED, lambda found: f"{ACCENTS[found[2]]}{{{found[1]}}}", name)
    name = "".join(MATH.get(char, char) for char in name)
    return re.sub(r"_\{(.)\}$", r"_{\1}", name)


def side(value: Any, printer: Unicode) -> str:
    return str(value) if isinstance(value, str | Quantity) else printer.doprint(value)


def unicode(relation: Relation) -> list[str]:
    """A formula in one line if it is short, else in two."""
    left, right = (side(x, Unicode()) for x in (relation.left, relation.right))
    whole = f"{left} {relation.sign} {right}"
    return [whole] if len(whole) <= LINE else [left, f"{relation.sign} {right}"]


def latex_sides(relation: Relation) -> tuple[str, str, str]:
    """A formula in LaTeX's math mode: the left side, the sign, the right side."""
    printer = Latex({"ln_notation": False})
    left, right = (
        rf"\text{{{text(str(x))}}}" if isinstance(x, str | Quantity) else printer.doprint(x)
        for x in (relation.left, relation.right)
    )
    sign = rf"\text{{ {relation.sign} }}" if relation.sign.islower() else MATH.get(relation.sign, relation.sign)
    return left, sign, right


def latex_lines(value: Any) -> list[str]:
    """A side that is too wide for a line: term by term."""
    if isinstance(value, str | Quantity):
        return []
    printer = Latex({"ln_notation": False})
    lines = [printer.doprint(part) for term in Add.make_args(value) for part in spread(term)]
    return [lines[0], *(line if line.startswith("-") else f"+ {line}" for line in lines[1:])]


def spread(term: Expr) -> list[Expr]:
    """A sum of terms, with a factor in front or not, as terms of sums."""
    sums = [x for x in Mul.make_args(term) if isinstance(x, Sum)]
    if len(sums) != 1:
        return [term]
    rest = Mul(*(x for x in Mul.make_args(term) if x != sums[0]))
    body: Any = sums[0].function
    return [rest * Sum(part, *sums[0].limits) for part in Add.make_args(body)]


def latex(relation: Relation) -> str:
    """A formula in LaTeX's math mode."""
    return " ".join(latex_sides(relation))


ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "$": r"\$",
    "~": r"\~{}",
    "{": r"\{",
    "}": r"\}",
}
SCRIPT = re.compile(r"([_^])(?:\{([^}]*)\}|([^\W_]['\w*−]*))")


def text(sentence: str) -> str:
    """A sentence for LaTeX: its sub- and superscripts set as such, other special characters escaped.

    Characters outside of ASCII stay; the document declares them.
    """
    pieces, at = [], 0
    for found in re.finditer(rf"(?P<name>(?:add|relative|value|output|qk)_\w+)|{SCRIPT.pattern}", sentence):
        pieces.append("".join(ESCAPES.get(char, char) for char in sentence[at : found.start()]))
        at = found.end()
        if found["name"]:
            pieces.append(rf"\texttt{{{found['name'].replace('_', chr(92) + '_')}}}")
        else:
            kind, inner = ("sub" if found[2] == "_" else "super"), found[3] or found[4]
            pieces.append(rf"\text{kind}script{{{text(inner)}}}")
    pieces += [ESCAPES.get(char, char) for char in sentence[at:]]
    return re.sub(
        ACCENTED,
        lambda found: rf"\ensuremath{{{ACCENTS[found[2]]}{{{MATH.get(found[1], found[1])}}}}}",
        "".join(pieces),
    )
