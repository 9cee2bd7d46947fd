"""Imported by programs beside Llama. The classes around llama.h are not there: pith has models and engines instead."""


def __getattr__(name):
    raise AttributeError(f"pith.llama_cpp has no _internals.{name}: pith.Model and pith.Engine stand for it")
