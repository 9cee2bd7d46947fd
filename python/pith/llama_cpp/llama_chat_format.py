"""Chat formats of one's own. The built-in ones are libllama's templates, which a Llama takes by name."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Union

from ._chat import grammar_of_format, to_chat, to_chat_chunks

REGISTERED: Dict[str, Callable] = {}


@dataclass
class ChatFormatterResponse:
    """A prompt, and what ends its answer."""

    prompt: str
    stop: Optional[Union[str, List[str]]] = None
    stopping_criteria: Any = None
    added_special: bool = False


LlamaChatCompletionHandler = Callable[..., Any]


def register_chat_completion_handler(name: str, overwrite: bool = False):
    """Decorator: handler(llama=, messages=, ...) answers for Llama(chat_format=name)."""

    def decorator(handler):
        if not overwrite and name in REGISTERED:
            raise ValueError(
                f"Formatter with name '{name}' is already registered. Use `overwrite=True` to overwrite it."
            )
        REGISTERED[name] = handler
        return handler

    return decorator


def get_chat_completion_handler(name: str):
    """A registered handler."""
    if name not in REGISTERED:
        raise ValueError(f"Invalid chat handler: {name} (valid formats: {list(REGISTERED)})")
    return REGISTERED[name]


def register_chat_format(name: str):
    """Decorator: formatter(messages=, ...) -> ChatFormatterResponse writes prompts for Llama(chat_format=name)."""

    def decorator(formatter):
        register_chat_completion_handler(name)(chat_formatter_to_chat_completion_handler(formatter))
        return formatter

    return decorator


def chat_formatter_to_chat_completion_handler(formatter):
    """A handler that answers a formatter's prompts."""

    def handler(
        *,
        llama,
        messages,
        functions=None,
        function_call=None,
        tools=None,
        tool_choice=None,
        response_format=None,
        logprobs=None,
        top_logprobs=None,
        stop=(),
        stream=False,
        **request,
    ):
        formatted = formatter(
            messages=messages, functions=functions, function_call=function_call, tools=tools, tool_choice=tool_choice
        )
        stops = [stop] if isinstance(stop, str) else list(stop or [])
        stops += [formatted.stop] if isinstance(formatted.stop, str) else list(formatted.stop or [])
        if request.get("grammar") is None:
            request["grammar"] = grammar_of_format(response_format)
        prompt = llama.tokenize(formatted.prompt.encode("utf-8"), add_bos=not formatted.added_special, special=True)
        answer = llama.create_completion(
            prompt,
            stop=stops,
            stream=stream,
            logprobs=(top_logprobs or 0) if logprobs else None,
            stopping_criteria=formatted.stopping_criteria,
            **request,
        )
        return to_chat_chunks(answer) if stream else to_chat(answer)

    return handler


class Jinja2ChatFormatter:
    """A template in Jinja, by the package jinja2."""

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: Optional[List[int]] = None,
    ):
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.template = template
        self.eos_token = eos_token
        self.bos_token = bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = set(stop_token_ids) if stop_token_ids is not None else None
        self._environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)

    def __call__(self, *, messages, functions=None, function_call=None, tools=None, tool_choice=None, **kwargs):
        def raise_exception(message: str):
            raise ValueError(message)

        prompt = self._environment.render(
            messages=messages,
            eos_token=self.eos_token,
            bos_token=self.bos_token,
            raise_exception=raise_exception,
            add_generation_prompt=self.add_generation_prompt,
            functions=functions,
            function_call=function_call,
            tools=tools,
            tool_choice=tool_choice,
        )
        criteria = None
        if self.stop_token_ids is not None:
            criteria = lambda tokens, logits: len(tokens) > 0 and tokens[-1] in self.stop_token_ids  # noqa: E731
        return ChatFormatterResponse(
            prompt=prompt,
            stop=[self.eos_token] if self.eos_token else None,
            stopping_criteria=criteria,
            added_special=True,
        )

    def to_chat_handler(self):
        """The handler for Llama(chat_handler=...)."""
        return chat_formatter_to_chat_completion_handler(self)


def hf_tokenizer_config_to_chat_formatter(tokenizer_config: Dict[str, Any], add_generation_prompt: bool = True):
    """The formatter of a tokenizer_config.json, by the package jinja2."""
    for name in ("chat_template", "bos_token", "eos_token"):
        if not isinstance(tokenizer_config.get(name), str):
            raise ValueError(f"tokenizer_config has no text '{name}'")
    inner = Jinja2ChatFormatter(
        tokenizer_config["chat_template"],
        eos_token=tokenizer_config["eos_token"],
        bos_token=tokenizer_config["bos_token"],
    )

    def format_tokenizer_config(*, messages, **kwargs):
        # An empty message of the assistant opens the answer.
        if add_generation_prompt:
            messages = [*messages, {"role": "assistant", "content": ""}]
        response = inner(messages=messages)
        response.stop = [inner.eos_token, inner.bos_token]
        return response

    return format_tokenizer_config


def format_mistral_instruct(messages, **kwargs):
    """Mistral's first format, without BOS."""
    prompt = ""
    for message in messages:
        content = message.get("content")
        if message["role"] == "user" and isinstance(content, str):
            prompt += "[INST] " + content + " [/INST]"
        elif message["role"] == "assistant" and content is not None:
            prompt += content + "</s>"
    return ChatFormatterResponse(prompt=prompt, stop="</s>")
