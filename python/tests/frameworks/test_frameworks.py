"""LangChain's and LlamaIndex's classes for llama.cpp, unchanged, on the drop-in under a budget."""

import pytest

import pith
import pith.llama_cpp

FILES = {
    "boats.txt": "Ines owns a red boat. It lies in the north of the bay.",
    "lamps.txt": "The lamp of the lighthouse burns rape oil. It was built in 1871.",
    "fish.txt": "Herring come in May. Nobody fishes on Sundays.",
}


@pytest.fixture(autouse=True)
def as_llama_cpp(model):
    pith.llama_cpp.install()
    yield
    pith.llama_cpp.uninstall()


def test_rows_become_frames_and_plots():
    rows = [
        {"recipe": recipe, "keep": keep, "nll": 1.0, "kl": 0.1, "accuracy": 1, "kept": keep, "kv_bytes": 1000}
        for recipe in ("full", "snapkv")
        for keep in (0.5, 0.2)
    ]
    frame = pith.eval.frame(rows)
    assert len(frame) == 4 and frame.groupby("recipe")["keep"].min()["snapkv"] == 0.2
    assert pith.eval.plot(rows).get_legend() is not None


def test_a_langchain_chain():
    from langchain_community.embeddings import LlamaCppEmbeddings
    from langchain_community.llms import LlamaCpp
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import PromptTemplate

    llm = LlamaCpp(
        model_path=str(pith.default_model()),
        n_ctx=1024,
        max_tokens=16,
        temperature=0.0,
        verbose=False,
        model_kwargs={"kv_budget": "64MiB", "recipe": "keydiff"},
    )
    prompt = PromptTemplate.from_template("{facts}\n\nAgain:\n{facts}\n\nAgain:\nInes owns a")
    chain = prompt | llm | StrOutputParser()
    facts = "\n".join(FILES.values())
    answer = chain.invoke({"facts": facts})
    assert "red" in answer
    assert "".join(chain.stream({"facts": facts})) == answer
    assert llm.client.kv_stats["budget_bytes"] == 64 << 20
    embeddings = LlamaCppEmbeddings(model_path=str(pith.default_model()), n_ctx=256, verbose=False)
    assert (
        len(
            embeddings.embed_query("Hello")[0]
            if isinstance(embeddings.embed_query("Hello")[0], list)
            else embeddings.embed_query("Hello")
        )
        == 576
    )


def test_a_langchain_chat_model():
    from langchain_community.chat_models import ChatLlamaCpp

    chat = ChatLlamaCpp(
        model_path=str(pith.default_model()),
        n_ctx=1024,
        max_tokens=12,
        temperature=0.0,
        verbose=False,
        model_kwargs={"kv_budget": "64MiB"},
    )
    answer = chat.invoke([("system", "Be brief."), ("human", "Name a colour.")])
    assert answer.content
    assert (
        "".join(chunk.content for chunk in chat.stream([("system", "Be brief."), ("human", "Name a colour.")]))
        == answer.content
    )


def test_a_llama_index_query_engine(tmp_path):
    from llama_index.core import Settings, SimpleDirectoryReader, SummaryIndex
    from llama_index.llms.llama_cpp import LlamaCPP

    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    llm = LlamaCPP(
        model_path=str(pith.default_model()),
        temperature=0.0,
        max_new_tokens=16,
        context_window=1024,
        verbose=False,
        model_kwargs={"kv_budget": "64MiB", "recipe": "keydiff"},
    )
    Settings.llm = llm
    # LlamaIndex counts tokens with tiktoken, whose tables it would fetch.
    Settings.tokenizer = lambda text: llm._model.tokenize(text.encode())
    from llama_index.core.node_parser import SentenceSplitter

    index = SummaryIndex.from_documents(
        SimpleDirectoryReader(str(tmp_path)).load_data(),
        transformations=[SentenceSplitter(chunk_size=128, chunk_overlap=0)],
    )
    answer = index.as_query_engine(response_mode="compact").query("What colour is the boat of Ines?")
    assert str(answer).strip() not in ("", "Empty Response")
    assert llm._model.kv_stats["peak_bytes"] <= 64 << 20
