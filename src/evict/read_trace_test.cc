#include "evict/read_trace.h"

#include <cmath>
#include <string>

#include <gtest/gtest.h>

namespace pith::evict {
namespace {

std::string ErrorOf(TraceFormat format, const std::string& text) {
  const auto trace = ReadTrace(format, text, "t");
  EXPECT_FALSE(trace) << text;
  if (trace) return "";
  EXPECT_EQ(trace.error().code, ErrorCode::kCorrupt);
  return trace.error().message;
}

TEST(ReadTrace, Csv) {
  const auto trace =
      ReadTrace(TraceFormat::kCsv, "time,id,size,ttl,rtt\r\n0.5,7,100,60,2000\n1,a b,20,5,1\n\n2,7,100,60,3\n", "t");
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_EQ(trace->object, (std::vector<uint32_t>{0, 1, 0}));
  EXPECT_EQ(trace->ids[0], 7u);
  EXPECT_EQ(trace->size, (std::vector<uint64_t>{100, 20, 100}));
  EXPECT_EQ(trace->time, (std::vector<double>{0.5, 1, 2}));
  EXPECT_EQ(trace->ttl[1], 5);
  EXPECT_EQ(trace->rtt[0], 2000);
  EXPECT_EQ(trace->next, (std::vector<uint32_t>{2, kNever, kNever}));
  EXPECT_EQ(trace->total_bytes(), 220u);
  EXPECT_EQ(trace->footprint_bytes(), 120u);
  EXPECT_FALSE(trace->uniform());
  // Any order, other columns, and no more than an id.
  const auto other = ReadTrace(TraceFormat::kCsv, "color, id\nred, 3\nblue, 3", "t");
  ASSERT_TRUE(other) << other.error().message;
  EXPECT_EQ(other->size, (std::vector<uint64_t>{1, 1}));
  EXPECT_EQ(other->time, (std::vector<double>{0, 1}));
  EXPECT_TRUE(other->ttl.empty());
  // With the mark before UTF-8 that spreadsheets write.
  const auto marked = ReadTrace(TraceFormat::kCsv, "\xef\xbb\xbfid\n3\n", "t");
  ASSERT_TRUE(marked) << marked.error().message;
  EXPECT_EQ(marked->ids[0], 3u);
}

TEST(ReadTrace, CsvErrorsNameTheLine) {
  const auto error = [](const std::string& text) { return ErrorOf(TraceFormat::kCsv, text); };
  EXPECT_EQ(error(""), "t is empty");
  EXPECT_EQ(error("id\n"), "t: the trace holds no requests");
  EXPECT_EQ(error("time,size\n"), "t, line 1: the header has no column \"id\" (columns are time, id, size, ttl, rtt)");
  EXPECT_EQ(error("id,id\n"), "t, line 1: the column id appears twice");
  EXPECT_EQ(error("id,size\n1,2\n3,x\n"), "t, line 3: \"x\" is no size in bytes");
  EXPECT_EQ(error("id,size\n1,-2\n"), "t, line 2: \"-2\" is no size in bytes");
  EXPECT_EQ(error("id,size\n1\n"), "t, line 2: \"\" is no size in bytes");
  EXPECT_EQ(error("id,size\n1,2,3\n"), "t, line 2: more than 2 fields");
  EXPECT_EQ(error("id,time\n1,nan\n"), "t, line 2: \"nan\" is no time in seconds");
  EXPECT_EQ(error("id,ttl\n1,-1\n"), "t, line 2: \"-1\" is no TTL in seconds");
  EXPECT_EQ(error("size,id\n1,\n"), "t, line 2: the id is missing");
}

TEST(ReadTrace, Oracle) {
  std::string record(24, '\0');
  record[0] = 9;                           // time
  record[4] = 1;                           // id 1 + 2^56
  record[11] = 1;
  record[12] = static_cast<char>(0xff);    // size 0xffff
  record[13] = static_cast<char>(0xff);
  const auto trace = ReadTrace(TraceFormat::kOracle, record + record, "t");
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_EQ(trace->ids, (std::vector<uint64_t>{(uint64_t{1} << 56) + 1}));
  EXPECT_EQ(trace->size[1], 0xffffu);
  EXPECT_EQ(trace->time[1], 9);
  EXPECT_EQ(trace->next[0], 1u);
  EXPECT_EQ(ErrorOf(TraceFormat::kOracle, record + "abc"), "t: record 2 is cut, of 24 bytes only 3 are there");
}

TEST(ReadTrace, NginxLogs) {
  const std::string combined =
      "1.2.3.4 - - [31/Jan/2026:23:59:59 +0100] \"GET /a?b HTTP/1.1\" 200 512 \"-\" \"x \\\" y\"\n"
      "1.2.3.4 - - [31/Jan/2026:23:59:59 +0100] \"POST /a HTTP/1.1\" 200 9 \"-\" \"-\"\n"
      "1.2.3.4 - bob [01/Feb/2026:00:00:01 +0100] \"GET /a?b HTTP/2.0\" 404 9 \"-\" \"-\"\n"
      "1.2.3.4 - bob [01/Feb/2026:00:00:02 +0100] \"GET /a?b HTTP/2.0\" 200 512 \"-\" \"-\"\n";
  const auto plain = ReadTrace(TraceFormat::kNginx, combined, "t");
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_EQ(plain->num_accesses(), 2u);
  EXPECT_EQ(plain->num_objects(), 1u);
  EXPECT_EQ(plain->time[0], 1769900399);
  EXPECT_EQ(plain->time[1], 1769900402);
  EXPECT_TRUE(std::isinf(plain->ttl[0]));
  EXPECT_TRUE(std::isnan(plain->rtt[0]));

  const std::string cache =
      "\"2026-01-31T22:59:59+00:00\" MISS \"http://h/x y\" 100 60 \"0.010, 0.250\"\n"
      "2026-01-31T23:00:00Z HIT http://h/b 7 - -\n"
      "1769900401.500 - http://h/b 7 30 0.001, 0.002\n";
  const auto full = ReadTrace(TraceFormat::kNginx, cache, "t");
  ASSERT_TRUE(full) << full.error().message;
  EXPECT_EQ(full->time, (std::vector<double>{1769900399, 1769900400, 1769900401.5}));
  EXPECT_EQ(full->ttl[0], 60);
  EXPECT_TRUE(std::isinf(full->ttl[1]));
  EXPECT_EQ(full->rtt[0], 250000);
  EXPECT_EQ(full->rtt[2], 2000);
  EXPECT_EQ(full->object, (std::vector<uint32_t>{0, 1, 1}));
}

TEST(ReadTrace, NginxErrorsNameTheLine) {
  const auto error = [](const std::string& text) { return ErrorOf(TraceFormat::kNginx, text); };
  EXPECT_EQ(error("hello\n"), "t, line 1: neither the combined format nor one that begins with a time");
  EXPECT_EQ(error("\"hello\n"), "t, line 1: a quote has no end");
  EXPECT_EQ(error("a - - [31/Foo/2026:23:59:59 +0100] \"GET /\" 200 1 \"-\" \"-\"\n"),
            "t, line 1: \"31/Foo/2026:23:59:59 +0100\" is no time");
  EXPECT_EQ(error("1.0 HIT k 5\n"), "t, line 1: fewer than five fields");
  EXPECT_EQ(error("1.0 HIT k x 5 -\n"), "t, line 1: \"x\" is no number of bytes");
  EXPECT_EQ(error("1.0 HIT k 5 x -\n"), "t, line 1: \"x\" is no TTL in seconds");
  EXPECT_EQ(error("1.0 HIT k 5 inf -\n"), "t, line 1: \"inf\" is no TTL in seconds");
  EXPECT_EQ(error("1.0 HIT k 5 6 soon\n"), "t, line 1: \"soon\" is no time of the upstream in seconds");
  EXPECT_EQ(error("1.0 HIT k 5 6 nan\n"), "t, line 1: \"nan\" is no time of the upstream in seconds");
}

TEST(ReadTrace, Prompts) {
  const auto trace = ReadTrace(
      TraceFormat::kPrompts,
      "{\"timestamp\": 1500, \"input_length\": 1000, \"output_length\": 7, \"hash_ids\": [5, 6]}\n"
      "\n{\"timestamp\": 2000, \"hash_ids\": [5, 8, 9], \"more\": {}}\n{\"timestamp\": 3000, \"hash_ids\": []}\n",
      "t");
  ASSERT_TRUE(trace) << trace.error().message;
  ASSERT_EQ(trace->prompts.size(), 2u);
  // Deepest first.
  EXPECT_EQ(trace->ids, (std::vector<uint64_t>{6, 5, 9, 8}));
  EXPECT_EQ(trace->object, (std::vector<uint32_t>{0, 1, 2, 3, 1}));
  EXPECT_EQ(trace->next, (std::vector<uint32_t>{kNever, 1, kNever, kNever, kNever}));
  EXPECT_EQ(trace->prompts[0].input_tokens, 1000u);
  EXPECT_EQ(trace->prompts[1].time, 2);
  const Access access = trace->AtPrompt(1, 2);
  EXPECT_EQ(access.depth, 2u);
  EXPECT_EQ(access.chain, 3u);
  EXPECT_EQ(access.moment, 1u);
}

TEST(ReadTrace, PromptErrorsNameTheLine) {
  const auto error = [](const std::string& text) { return ErrorOf(TraceFormat::kPrompts, "\n" + text); };
  EXPECT_EQ(error("{"), "t, line 2: this is not valid JSON");
  EXPECT_EQ(error("[1]"), "t, line 2: this is not a JSON object");
  EXPECT_EQ(error("{\"hash_ids\": [1]}"), "t, line 2: the field \"timestamp\" is no number of milliseconds");
  EXPECT_EQ(error("{\"timestamp\": 1}"), "t, line 2: the field \"hash_ids\" is no list");
  EXPECT_EQ(error("{\"timestamp\": 1, \"hash_ids\": [-1]}"),
            "t, line 2: the field \"hash_ids\" holds something that is no block's number");
  EXPECT_EQ(error("{\"timestamp\": 1, \"hash_ids\": [4, 4]}"), "t, line 2: a block appears twice in one prompt");
  EXPECT_EQ(error("{\"timestamp\": 1, \"input_length\": -1, \"hash_ids\": [4]}"),
            "t, line 2: the field \"input_length\" or \"output_length\" is no number of tokens");
  EXPECT_EQ(error(std::string(9, '[')), "t, line 2: this JSON is nested too deep");
}

TEST(ReadTrace, FormatsHaveNames) {
  EXPECT_EQ(*FormatOfFile("a/b.csv"), TraceFormat::kCsv);
  EXPECT_EQ(*FormatOfFile("b.jsonl"), TraceFormat::kPrompts);
  EXPECT_EQ(*FormatOfFile("b.oracleGeneral.bin"), TraceFormat::kOracle);
  EXPECT_EQ(*FormatOfFile("access.log"), TraceFormat::kNginx);
  EXPECT_FALSE(FormatOfFile("b.txt"));
  EXPECT_EQ(*ParseFormatName("nginx"), TraceFormat::kNginx);
  EXPECT_FALSE(ParseFormatName("xml"));
}

}  // namespace
}  // namespace pith::evict
