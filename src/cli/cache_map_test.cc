#include "cli/cache_map.h"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace pith::cli {
namespace {

TEST(CacheMap, ShadesAreShares) {
  std::vector<double> kept(80, 1.0);
  std::fill(kept.begin() + 40, kept.begin() + 60, 0.0);
  std::fill(kept.begin() + 60, kept.end(), 0.5);
  const std::vector<MapRow> rows = {{0, "you: all of it"}, {40, "you: gone and half"}};
  const std::string map = DrawCacheMap(kept, rows);
  EXPECT_NE(map.find("100.0%\n"), std::string::npos) << map;
  EXPECT_NE(map.find("25.0%\n"), std::string::npos) << map;
  EXPECT_NE(map.find("██"), std::string::npos);
  EXPECT_NE(map.find("··"), std::string::npos);
  EXPECT_NE(map.find("▒▒"), std::string::npos);
}

TEST(CacheMap, AnythingIsMoreThanNothingAndLessThanAll) {
  const std::vector<MapRow> rows = {{0, "x"}};
  EXPECT_NE(DrawCacheMap(std::vector<double>(4, 0.001), rows).find("░░░░"), std::string::npos);
  EXPECT_NE(DrawCacheMap(std::vector<double>(4, 0.999), rows).find("▓▓▓▓"), std::string::npos);
}

TEST(CacheMap, LabelsAreOneLineOfWholeCharacters) {
  const std::string map =
      DrawCacheMap(std::vector<double>(4, 1.0), std::vector<MapRow>{{0, "äöüäöüäöüäöüäöüäöüäöüäöüäöü\nx"}});
  EXPECT_NE(map.find("äöüäöüäöüäöüäöüäöüäöüäöü…"), std::string::npos) << map;
  EXPECT_EQ(std::count(map.begin(), map.end(), '\n'), 1);
  EXPECT_EQ(DrawCacheMap({}, std::vector<MapRow>{{0, "nothing"}}), "");
  // A row that begins behind what there is.
  EXPECT_EQ(DrawCacheMap(std::vector<double>(4, 1.0), std::vector<MapRow>{{9, "x"}}), "");
}

}  // namespace
}  // namespace pith::cli
