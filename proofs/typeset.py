"""Sentences of the catalogue, which are plain text, as LaTeX: what is mathematics in them goes into math mode.

A word is mathematics if it has a sign, a subscript or an accent, is a function of something, or is a single letter; so
is a number or the name of a function beside such a word. Words that stand next to each other make one formula.
"""

import re

from minibeft.proofs.printing import ACCENTS, ESCAPES, MATH

KNOWN = {"tanh", "cos", "exp", "ln", "log", "min", "max", "det"}  # LaTeX has them
OPERATORS = KNOWN | {"artanh", "osc", "diam", "span", "conv", "rank", "sigmoid", "softmax", "lim"}
CODE = r"(?:add|relative|value|output|qk)_\w+"  # a name from a program
REFERENCE = r"[KVQRIG]\d+(?:[/–][KVQRIG]?\d+)*"
ENGLISH = r"[A-Za-zÀ-ÖØ-öø-ÿ]{2,}(?:[-–/'’][A-Za-zÀ-ÖØ-öø-ÿ]+)*|[a-z]+-[a-z0-9-]+|[A-Z][a-z]+\+[A-Z][a-z]+"
GREEK = r"[α-ωΑ-Ω]-[a-z]+"  # λ-difference
NUMBER = r"\d+(?:[.,/]\d+)*…?"
SIGNS = set("_^=<>+*/|") | set(MATH) - set("§…–′")
RELATIONS = "=≤≥≠<>+·−∈/"
ACCENT = "".join(ACCENTS)
ABOVE = "ᵀ⁺⁻¹²³ᵗᵖ⁰ᵈ°"  # no part of a subscript
SCRIPT = re.compile(rf"([_^])(?:\{{([^}}]*)\}}|(−?(?:(?![_{ABOVE}])[\w*{ACCENT}])+))")
ATOM = re.compile(rf"(\w)([{ACCENT}])|([A-Za-z]{{2,}})(?![{ACCENT}])|(.)", re.DOTALL)
TIGHT = re.compile(r" ?([=≤≥≠<>+·−→≪≫∝]) ?")  # LaTeX spaces these itself
TWICE = re.compile(r"([_^])\{([^{}]*)\}\1\{")  # two scripts in a row, as of P₁₂


def sentence(words: str) -> str:
    """A sentence with its mathematics in $…$, and the rest escaped."""
    pieces: list[str] = []
    group: list[str] = []
    tokens = words.split(" ")
    for token, kind in zip(tokens, mathematics(tokens), strict=True):
        if group and not kind:
            pieces, group = [*pieces, formula(" ".join(group))], []
        if not kind:
            pieces.append(word(token))
            continue
        group.append(token)
        if ends(token) and opened(" ".join(group)) <= 0:
            pieces, group = [*pieces, formula(" ".join(group))], []
    return " ".join([*pieces, formula(" ".join(group))] if group else pieces)


def mathematics(tokens: list[str]) -> list[bool]:
    """Which words are mathematics, by themselves or by what stands beside them."""
    kinds = [mathematical(token) for token in tokens]
    inside = 0  # brackets that a formula has opened
    for at, token in enumerate(tokens):
        left = at > 0 and kinds[at - 1] and (inside > 0 or not ends(tokens[at - 1]))
        right = at + 1 < len(tokens) and kinds[at + 1] and not ends(token)
        bare = token.strip("(),.;:")
        if re.fullmatch(NUMBER, bare) or bare in OPERATORS:
            kinds[at] |= left or right
        elif bare in ("a", "A", "I"):  # words, too
            kinds[at] |= (left and tokens[at - 1][-1] in RELATIONS) or (right and tokens[at + 1][0] in RELATIONS)
        inside = max(0, inside + opened(token)) if kinds[at] else 0
    return kinds


def ends(token: str) -> bool:
    """Whether punctuation stands behind a word."""
    return token.endswith((",", ".", ";", ":"))


def opened(text: str) -> int:
    """How many brackets are open."""
    return text.count("(") - text.count(")")


def mathematical(token: str) -> bool:
    """Whether a word is mathematics by itself."""
    bare = token.strip("(),.;:")
    if len(bare) == 1 and bare.isalpha():
        return bare not in "aAI"
    if not bare or re.fullmatch(f"{CODE}|{REFERENCE}|{ENGLISH}|{GREEK}|{NUMBER}", bare):
        return False
    if re.fullmatch(r"[A-Za-z]['′]+|\w\)\w|\d+[a-zA-Z]", bare):
        return True
    applied = re.match(rf"\(*(?:[A-Za-z]{{1,2}}|TV|{'|'.join(sorted(OPERATORS))})\(", token)
    return bool(applied) or bool(set(bare) & (SIGNS | set(ACCENT)))


def formula(text: str) -> str:
    """Words that are mathematics; punctuation, and a bracket that has no partner, stay outside."""
    before = after = ""
    while text and (text[-1] in ",.;:" or (text[-1] == ")" and opened(text) < 0)):
        text, after = text[:-1], text[-1] + after
    while text[:1] == "(" and opened(text) > 0:
        before, text = before + "(", text[1:]
    return f"{before}${math(text)}${after}" if text else before + after


def math(text: str, script: bool = False) -> str:
    """The same in math mode; letters of a script are indices, each of its own."""
    text = TIGHT.sub(lambda found: found[1] or found[2], text)
    pieces, at = [], 0
    for found in SCRIPT.finditer(text):
        pieces += [letters(text[at : found.start()], script), f"{found[1]}{{{math(found[2] or found[3], True)}}}"]
        at = found.end()
    return TWICE.sub(r"\1{\2", "".join([*pieces, letters(text[at:], script)]))


def letters(text: str, script: bool) -> str:
    """Letters, names and signs without scripts."""
    return "".join(atom(found[1], found[2], found[3], found[4], script) for found in ATOM.finditer(text))


def atom(letter: str | None, accent: str | None, name: str | None, char: str | None, script: bool) -> str:
    """A letter with an accent, a name of several letters, or one character."""
    if letter and accent:
        return rf"{ACCENTS[accent]}{{{MATH.get(letter, letter)}}}"
    if name in KNOWN:
        return rf"\{name} "
    if name:
        return rf"\operatorname{{{name}}}" if name in OPERATORS else name if script else rf"\mathrm{{{name}}}"
    assert char is not None
    special = {" ": r"\,", "Σ": r"\sum", "*": "^{*}", "%": r"\%", "#": r"\#", "&": r"\&", "{": r"\{", "}": r"\}"}
    command = special.get(char) or MATH.get(char, char)
    return command + " " if re.fullmatch(r"\\[A-Za-z]+", command) else command


def word(token: str) -> str:
    """A word that is not mathematics, or begins with a letter that is."""
    if greek := re.fullmatch(rf"(\(*)({GREEK})(\W*)", token):
        return f"{greek[1]}${math(greek[2][0])}${greek[2][1:]}{greek[3]}"
    if code := re.fullmatch(rf"(\(*)({CODE})([),.;:]*)", token):
        return rf"{code[1]}\texttt{{{code[2].replace('_', chr(92) + '_')}}}{code[3]}"
    return "".join(ESCAPES.get(char, rf"\{char}" if char in "_^" else char) for char in token)
