"""Chat completions of a Llama: the model's template, tools, formats of the answer."""

import json
import re

from .llama_grammar import JSON_GBNF, LlamaGrammar, json_schema_to_gbnf

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*(?:</tool_call>|$)", re.DOTALL)
_COMPLETION = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "stream",
    "stop",
    "seed",
    "max_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repeat_penalty",
    "tfs_z",
    "mirostat_mode",
    "mirostat_tau",
    "mirostat_eta",
    "model",
    "logits_processor",
    "grammar",
    "logit_bias",
)


def chat_completion(
    llama,
    *,
    messages,
    functions=None,
    function_call=None,
    tools=None,
    tool_choice=None,
    response_format=None,
    logprobs=None,
    top_logprobs=None,
    **request,
):
    """create_chat_completion() by the model's own template."""
    tools = [{"type": "function", "function": one} for one in functions] if functions else tools
    if isinstance(function_call, dict):
        tool_choice = {"type": "function", "function": {"name": function_call["name"]}}
    elif function_call is not None:
        tool_choice = function_call
    if tool_choice == "none":
        tools = None
    options = {name: request[name] for name in _COMPLETION if name in request}
    if options.get("grammar") is None:
        options["grammar"] = grammar_of_format(response_format)
    stream = bool(options.pop("stream", False))
    if logprobs:
        options["logprobs"] = top_logprobs if top_logprobs is not None else 0
    tool_name = None
    if tools and isinstance(tool_choice, dict):
        tool_name = tool_choice["function"]["name"]
        options["grammar"] = LlamaGrammar.from_json_schema(json.dumps(_tool(tools, tool_name)["parameters"]))
    elif tools and tool_choice == "required":
        options["grammar"] = LlamaGrammar.from_string(_grammar_of_calls(tools))
    prompt = llama.tokenize(render(llama, messages, tools).encode("utf-8"), add_bos=True, special=True)
    answer = llama.create_completion(prompt, stream=stream, **options)
    if tool_name is not None:
        return _function_chunks(answer, tool_name) if stream else _function(answer, tool_name)
    if tools:
        return _call_chunks(answer, tools) if stream else _calls(to_chat(answer), tools)
    return to_chat_chunks(answer) if stream else to_chat(answer)


def grammar_of_format(response_format):
    """The grammar of a response_format, or None."""
    kind = (response_format or {}).get("type")
    if kind == "json_object":
        schema = response_format.get("schema")
        return LlamaGrammar.from_string(JSON_GBNF if schema is None else json_schema_to_gbnf(json.dumps(schema)))
    if kind == "json_schema":
        schema = response_format.get("json_schema", {}).get("schema", response_format.get("schema"))
        if schema is None:
            raise ValueError("response_format of the type json_schema needs a schema")
        return LlamaGrammar.from_json_schema(json.dumps(schema))
    return None


def _tool(tools, name):
    for tool in tools:
        if tool["function"]["name"] == name:
            return dict({"parameters": {"type": "object", "properties": {}}}, **tool["function"])
    raise ValueError(f"Tool choice '{name}' not found in tools.")


def _grammar_of_calls(tools):
    """Of one call of any of the tools, in tags."""
    alternatives = []
    for tool in tools:
        own = _tool(tools, tool["function"]["name"])
        alternatives.append(
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "arguments"],
                "properties": {"name": {"const": own["name"]}, "arguments": own["parameters"]},
            }
        )
    schema = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
    grammar = re.sub(r"^root ::=", "one-call ::=", json_schema_to_gbnf(json.dumps(schema)), flags=re.MULTILINE)
    return grammar + '\nroot ::= "<tool_call>\\n" one-call "\\n</tool_call>"\n'


def render(llama, messages, tools=None):
    """The prompt; where the template knows no tools, they stand in the system message."""
    messages = [dict(message) for message in messages]
    for message in messages:
        if message.get("content") is None:
            message["content"] = ""
        if message.get("function_call") and not message.get("tool_calls"):
            message["tool_calls"] = [{"id": "call_0", "type": "function", "function": message.pop("function_call")}]
    if not tools and not any(
        message.get("tool_calls") or message["role"] in ("tool", "function") for message in messages
    ):
        return llama._pith_model.render(messages)
    knows = "tools" in (llama._info["chat_template"] or "")
    if knows:
        text = llama._pith_model.render(messages, tools=tools)
        if not tools or tools[0]["function"]["name"] in text:
            return text
    return llama._pith_model.render(_without_tool_roles(messages, tools))


def _without_tool_roles(messages, tools):
    out = []
    for message in messages:
        one = {"role": message["role"], "content": message["content"]}
        for call in message.get("tool_calls") or []:
            function = call["function"]
            try:
                arguments = json.loads(function.get("arguments") or "{}")
            except ValueError:
                arguments = {}
            said = json.dumps({"name": function["name"], "arguments": arguments})
            one["content"] += ("\n" if one["content"] else "") + f"<tool_call>\n{said}\n</tool_call>"
        if one["role"] in ("tool", "function"):
            one = {"role": "user", "content": f"<tool_response>\n{one['content']}\n</tool_response>"}
            if out and out[-1]["role"] == "user":
                out[-1]["content"] += "\n" + one["content"]
                continue
        out.append(one)
    if not tools:
        return out
    if not out or out[0]["role"] != "system":
        out.insert(0, {"role": "system", "content": ""})
    listed = "\n".join(json.dumps(tool) for tool in tools)
    out[0]["content"] += ("\n\n" if out[0]["content"] else "") + (
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{listed}\n</tools>\n\n"
        "For each function call, return a JSON object with the function's name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )
    return out


# ---- Shapes of answers


def _logprobs_of(found):
    if found is None:
        return None
    content = []
    for token, logprob, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"]):
        content.append(
            {
                "token": token,
                "bytes": None,
                "logprob": logprob,
                "top_logprobs": [{"token": one, "logprob": value, "bytes": None} for one, value in top.items()],
            }
        )
    return {"content": content, "refusal": None}


def _head(completion, kind):
    return {
        "id": "chat" + completion["id"],
        "object": kind,
        "created": completion["created"],
        "model": completion["model"],
    }


def to_chat(completion):
    """A completion as a chat's answer."""
    choice = completion["choices"][0]
    return dict(
        _head(completion, "chat.completion"),
        choices=[
            {
                "index": 0,
                "message": {"role": "assistant", "content": choice["text"]},
                "logprobs": _logprobs_of(choice["logprobs"]),
                "finish_reason": choice["finish_reason"],
            }
        ],
        usage=completion["usage"],
    )


def _chunk(chunk, delta, finish_reason=None, logprobs=None):
    return dict(
        _head(chunk, "chat.completion.chunk"),
        choices=[{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}],
    )


def to_chat_chunks(chunks):
    """Chunks of a completion as a chat's."""
    is_first = True
    for chunk in chunks:
        if is_first:
            yield _chunk(chunk, {"role": "assistant"})
            is_first = False
        choice = chunk["choices"][0]
        ended = choice["finish_reason"] is not None
        yield _chunk(
            chunk,
            {} if ended else {"content": choice["text"]},
            choice["finish_reason"],
            _logprobs_of(choice["logprobs"]),
        )


def _function(completion, name):
    choice = completion["choices"][0]
    function = {"name": name, "arguments": choice["text"]}
    call = {"id": f"call__0_{name}_{completion['id']}", "type": "function", "function": dict(function)}
    return dict(
        _head(completion, "chat.completion"),
        choices=[
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, "function_call": function, "tool_calls": [call]},
                "logprobs": _logprobs_of(choice["logprobs"]),
                "finish_reason": "tool_calls",
            }
        ],
        usage=completion["usage"],
    )


def _function_chunks(chunks, name):
    blank = {"content": None, "function_call": None, "tool_calls": None}
    last = None
    for chunk in chunks:
        if last is None:
            yield _chunk(chunk, dict(blank, role="assistant"))
        last = chunk
        choice = chunk["choices"][0]
        function = {"name": name, "arguments": choice["text"]}
        call = {"index": 0, "id": f"call__0_{name}_{chunk['id']}", "type": "function", "function": dict(function)}
        yield _chunk(
            chunk,
            {"role": None, "content": None, "function_call": function, "tool_calls": [call]},
            None,
            _logprobs_of(choice["logprobs"]),
        )
    if last is not None:
        yield _chunk(last, dict(blank, role=None), "tool_calls")


def _parsed(text, tools, identity):
    """Calls of known tools in a text, and the rest of it."""
    names, calls = {tool["function"]["name"] for tool in tools}, []

    def take(source):
        try:
            said = json.loads(source)
        except ValueError:
            return False
        arguments = said.get("arguments", said.get("parameters", {})) if isinstance(said, dict) else None
        if not isinstance(arguments, dict) or said.get("name") not in names:
            return False
        calls.append(
            {
                "id": f"call_{len(calls)}_{said['name']}_{identity}",
                "type": "function",
                "function": {"name": said["name"], "arguments": json.dumps(arguments)},
            }
        )
        return True

    rest = _CALL.sub(lambda found: "" if take(found[1]) else found[0], text)
    if not calls and take(text.strip()):
        rest = ""
    return calls, rest.strip() if calls else rest


def _calls(answer, tools):
    """An answer whose text holds calls."""
    choice = answer["choices"][0]
    calls, rest = _parsed(choice["message"]["content"], tools, answer["id"])
    if calls:
        choice["message"].update(content=rest or None, tool_calls=calls, function_call=dict(calls[0]["function"]))
        choice["finish_reason"] = "tool_calls"
    return answer


def _call_chunks(chunks, tools):
    """Passes a text on; holds back what may be a call until the end."""
    held, passes, is_first, logprobs = "", False, True, []
    for chunk in chunks:
        if is_first:
            yield _chunk(chunk, {"role": "assistant"})
            is_first = False
        choice = chunk["choices"][0]
        held += choice["text"]
        logprobs.append(_logprobs_of(choice["logprobs"]))
        start = held.lstrip()
        if choice["finish_reason"] is None:
            may_call = not start or start[0] == "{" or "<tool_call>".startswith(start[:11]) or "<tool_call>" in held
            if passes or not may_call:
                passes = "<tool_call>" not in held
                if passes:
                    yield _chunk(chunk, {"content": held}, None, logprobs[-1])
                    held = ""
            continue
        calls, rest = _parsed(held, tools, chunk["id"])
        if rest:
            yield _chunk(chunk, {"content": rest})
        for i, call in enumerate(calls):
            yield _chunk(chunk, {"tool_calls": [dict(call, index=i)]})
        yield _chunk(chunk, {}, "tool_calls" if calls else choice["finish_reason"])
