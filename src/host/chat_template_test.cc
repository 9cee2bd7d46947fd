#include "host/chat_template.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "host/model.h"
#include "host/trial.h"

namespace pith {
namespace {

using Messages = std::vector<ChatMessage>;

const Messages kTalk = {{"system", "Be brief."}, {"user", " Why? "}, {"assistant", "So."}, {"user", "Then \"go\"."}};

std::string Write(const std::string& text, const Messages& messages = kTalk, bool add_assistant = true) {
  const auto chat = ChatTemplate::Parse(text, "<s>", "</s>");
  if (!chat) return "refused: " + chat.error().message;
  const Result<std::string> written = chat->Apply(messages, add_assistant);
  return written ? *written : "error: " + written.error().message;
}

TEST(ChatTemplate, LoopsConditionsAndFilters) {
  const char* const text =
      "{{ bos_token }}{%- for m in messages -%}\n"
      "  {%- if loop.first and m['role'] == 'system' %}{{ '[' + m.content | upper + ']' }}{% else -%}\n"
      "    <{{ m.role }}>{{ m['content'] | trim }}{{ eos_token if m.role == 'assistant' else '' }}{% endif -%}\n"
      "{%- endfor -%}{%- if add_generation_prompt %}<assistant>{% endif %}";
  EXPECT_EQ(Write(text), "<s>[BE BRIEF.]<user>Why?<assistant>So.</s><user>Then \"go\".<assistant>");
  EXPECT_EQ(Write(text, {{"user", "x"}}, false), "<s><user>x");
}

// What newer templates use, and what libllama's list of known ones cannot stand for.
TEST(ChatTemplate, NamespacesSlicesMacrosAndJson) {
  EXPECT_EQ(Write("{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = "
                  "loop.index0 %}"
                  "{% endif %}{% endfor %}{{ ns.last }}"),
            "3");
  EXPECT_EQ(Write("{% for m in messages[::-1] %}{{ m.role[0] }}{% endfor %}"), "uaus");
  EXPECT_EQ(
      Write("{% macro show(m, mark='*') %}{{ mark }}{{ m.content | length }}{% endmacro %}{{ show(messages[0]) }}"),
      "*9");
  EXPECT_EQ(Write("{{ messages[3].content | tojson }}"), "\"Then \\\"go\\\".\"");
  EXPECT_EQ(Write("{% if tools is defined and tools %}t{% else %}none{% endif %}{{ enable_thinking is defined }}"),
            "noneFalse");
}

TEST(ChatTemplate, ToolsCallsAndTheirAnswers) {
  const char* const text =
      "{% if tools %}{% for t in tools %}[{{ t.function.name }}:{{ t.function.parameters | tojson }}]{% endfor %}{% "
      "endif %}"
      "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}({{ c.function.name }}"
      "{{ c.function.arguments | tojson }}){% endfor %}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% "
      "endfor %}";
  const auto chat = ChatTemplate::Parse(text, "", "");
  ASSERT_TRUE(chat.has_value());
  const Messages talk = {{"user", "Weather?"},
                         {"assistant", "", {{"call_1", "weather", R"({"city": "Bonn"})"}}},
                         {"tool", "rain", {}, "call_1", "weather"}};
  const std::string tools = R"([{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}])";
  EXPECT_EQ(chat->Apply(talk, false, tools).value(),
            R"([weather:{"type": "object"}]<user>Weather?<assistant>(weather{"city": "Bonn"})<tool>rain#call_1)");
  EXPECT_FALSE(chat->Apply(talk, false, "[{").has_value());
  // A template that puts arguments between texts of its own gets them as a text.
  const auto joins = ChatTemplate::Parse(
      "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '<' + c.function.arguments + '>' }}{% endfor %}{% "
      "endfor %}",
      "", "");
  EXPECT_EQ(joins->Apply(talk, false).value(), R"(<{"city": "Bonn"}>)");
}

TEST(ChatTemplate, WhatTheUserSaysIsNotATemplate) {
  EXPECT_EQ(Write("{{ messages[0].content }}", {{"user", "{{ eos_token }}{% for %}"}}), "{{ eos_token }}{% for %}");
}

TEST(ChatTemplate, RefusalsAreOneSentence) {
  const std::string roles =
      Write("{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}");
  EXPECT_NE(roles.find("error: "), std::string::npos) << roles;
  EXPECT_NE(roles.find("no system role here"), std::string::npos) << roles;
  for (const char* text :
       {"{% for m in messages %}", "{{ 'open }}", "{% endif %}", "{{ a. }}", "{{ messages | weave }}"}) {
    const std::string result = Write(text);
    EXPECT_TRUE(result.starts_with("refused: the chat template") || result.starts_with("error: the chat template"))
        << result;
    EXPECT_EQ(result.find('\n'), std::string::npos) << result;
  }
  EXPECT_NE(Write(std::string(size_t{2} << 20, 'x')).find("refused"), std::string::npos);
}

// A file's template is tried in a child: there it may run on or fill the stack.
TEST(ChatTemplate, EvilOnesEndInTheChild) {
  const auto try_it = [](const std::string& text) {
    const TrialLimits limits{.memory_bytes = size_t{256} << 20, .cpu_seconds = 2};
    return TryInChild("the template", limits, [&] { (void)Write(text); return Status(); }, nullptr);
  };
  EXPECT_TRUE(try_it("{{ messages[0].content }}")) << "control";
  EXPECT_FALSE(try_it("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_FALSE(try_it("{{ " + std::string(500000, '(') + "1" + std::string(500000, ')') + " }}"));
#endif
}

}  // namespace
}  // namespace pith
