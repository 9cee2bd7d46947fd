"""Grammars that an answer keeps to."""

import json
from pathlib import Path

from .. import _pith

JSON_GBNF = r"""
root   ::= object
value  ::= object | array | string | number | (("true" | "false" | "null") ws)

object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""


class LlamaGrammar:
    """A GBNF grammar with a rule "root"."""

    def __init__(self, *args, _grammar: str, **kwargs):
        self._grammar = _grammar
        self._root = "root"

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> "LlamaGrammar":
        return cls(_grammar=grammar)

    @classmethod
    def from_file(cls, file, verbose: bool = True) -> "LlamaGrammar":
        path = Path(file)
        if not path.exists():
            raise FileNotFoundError(f"{cls.__name__}.from_file: file not found: {file}")
        text = path.read_text()
        if not text:
            raise ValueError(f"{cls.__name__}.from_file: error parsing grammar file: {file} is empty")
        return cls.from_string(text, verbose=verbose)

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> "LlamaGrammar":
        return cls.from_string(json_schema_to_gbnf(json_schema), verbose=verbose)


def json_schema_to_gbnf(schema: str, prop_order=None) -> str:
    """GBNF of a JSON schema (text, or what json.dumps takes)."""
    return _pith.grammar_of_schema(schema if isinstance(schema, str) else json.dumps(schema))
