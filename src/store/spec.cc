#include "store/spec.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>

#include "base/escaped.h"
#include "base/text.h"
#include "store/remote_client.h"

namespace pith::store {
namespace {

Status Set(std::string_view name, std::string_view value, StoreOptions& options) {
  if (name == "place") {
    options.places = value == "evicpress";
    return options.places || value == "evictor" ? Status() : Status(InvalidArgument("place is evictor or evicpress"));
  }
  if (name == "loss") {
    PITH_ASSIGN_OR_RETURN(const SizeOrShare loss, ParseSizeOrShare(value));
    options.quality_loss = loss.share;
    const bool is_share = loss.share > 0 && loss.share < 1;
    return is_share ? Status() : Status(InvalidArgument("loss is a percentage between 0% and 100%"));
  }
  if (name == "evictor") {
    options.evictor = value;
    PITH_RETURN_IF_ERROR(TierPolicy::Make(options.evictor, 1));
    return {};
  }
  if (name != "ram" && name != "ssd") {
    return InvalidArgument(
        fmt::format("a store has no option \"{}\"; there are ram, ssd, evictor, place and loss", Escaped(name)));
  }
  PITH_ASSIGN_OR_RETURN(const size_t bytes, ParseSize(value));
  if (name == "ram") options.ram_bytes = bytes;
  else options.ssd_bytes = bytes;
  return {};
}

}  // namespace

Result<StoreOptions> ParseStoreSpec(std::string_view text) {
  StoreOptions options{.ram_bytes = kDefaultRamBytes, .folder = "", .ssd_bytes = kDefaultSsdBytes};
  const std::string_view place = text.substr(0, text.find(','));
  std::string_view rest = place.size() < text.size() ? text.substr(place.size() + 1) : std::string_view();
  if (place.find("://") != std::string_view::npos) {
    // Further servers of a cluster stand behind commas, too.
    options.remote = place;
    while (!rest.empty() && rest.substr(0, rest.find(',')).find('=') == std::string_view::npos) {
      const std::string_view node = rest.substr(0, rest.find(','));
      options.remote.append(",").append(node);
      rest = node.size() < rest.size() ? rest.substr(node.size() + 1) : std::string_view();
    }
    options.ssd_bytes = 0;
    PITH_ASSIGN_OR_RETURN(const RemoteAddress address, ParseRemoteUrl(options.remote));
    const auto client = MakeValkeyClient(address, 1);
    if (!client) return tl::unexpected<Error>(client.error());
  } else if (place.starts_with("ram:")) {
    PITH_ASSIGN_OR_RETURN(options.ram_bytes, ParseSize(place.substr(4)));
    options.ssd_bytes = 0;
  } else {
    options.folder = place.starts_with("file:") ? place.substr(5) : place;
    if (options.folder.empty()) return InvalidArgument("a store needs a folder, or ram:SIZE");
  }
  while (!rest.empty()) {
    const std::string_view item = rest.substr(0, rest.find(','));
    rest = item.size() < rest.size() ? rest.substr(item.size() + 1) : std::string_view();
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos) {
      return InvalidArgument(
          fmt::format("\"{}\" behind a store's folder is no option of the form name=value", Escaped(item)));
    }
    PITH_RETURN_IF_ERROR(Set(item.substr(0, equals), item.substr(equals + 1), options));
  }
  if (options.folder.empty()) options.ssd_bytes = 0;
  if (options.places && options.folder.empty()) return InvalidArgument("place=evicpress needs a folder");
  constexpr uint64_t kLeastSsdBytes = uint64_t{4} << 20;
  if (!options.folder.empty() && options.ssd_bytes < kLeastSsdBytes) {
    return InvalidArgument("a store's folder needs at least 4 MiB (ssd=SIZE)");
  }
  return options;
}

Result<StoreOptions> ParseStoreSpecToLook(std::string_view text) {
  PITH_ASSIGN_OR_RETURN(StoreOptions options, ParseStoreSpec(text));
  if (options.folder.empty() || text.find(",ssd=") != std::string_view::npos) return options;
  uint64_t bytes = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator at(options.folder, error), end; !error && at != end; at.increment(error)) {
    std::error_code unknown;
    const uintmax_t size = at->file_size(unknown);
    if (!unknown) bytes += size;
  }
  options.ssd_bytes = std::max(options.ssd_bytes, 2 * bytes);  // of which 7 tenths may live
  return options;
}

}  // namespace pith::store
