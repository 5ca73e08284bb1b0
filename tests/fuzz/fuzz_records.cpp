// The record reader under libFuzzer: bytes are read or refused, and the result does not depend on
// the pieces in which a source returns them.
//
// An input is a TFRecord file. The mutator knows its structure: it changes a message somewhere in a
// record and corrects the lengths and checksums around it, so that the change reaches the decoders.
// Sometimes it changes raw bytes, to test the framing. tests/fuzz/run builds and runs it.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "decode.h"
#include "message.h"
#include "reader.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using namespace pyseg::records;  // NOLINT

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "not true: %s\n", what);
  std::abort();
}

Bytes bytes(std::string_view text) {
  const auto* begin = reinterpret_cast<const uint8_t*>(text.data());
  return {begin, begin + text.size()};
}

// ---- reading

class MemorySource final : public Source {
 public:
  MemorySource(std::string_view data, size_t piece) : data_(data), piece_(piece) {}

  size_t read(uint8_t* to, size_t count) override {
    count = std::min({count, piece_, data_.size() - at_});
    if (count) std::memcpy(to, data_.data() + at_, count);
    at_ += count;
    return count;
  }

 private:
  std::string_view data_;
  size_t piece_;
  size_t at_ = 0;
};

// The payloads of a file, and the faults in between.
std::vector<std::string> read(std::string_view file, size_t piece, int64_t size) {
  constexpr uint64_t kLargest = 1 << 16;
  Reader reader(std::make_unique<MemorySource>(file, piece), size, kLargest);
  std::vector<std::string> found;
  while (true) {
    try {
      Bytes payload;
      if (!reader.next(&payload)) return found;
      found.emplace_back(payload.text());
    } catch (const Fault& fault) {
      require(std::strstr(fault.what(), "expected") != nullptr, "an error says what was expected");
      found.emplace_back(fault.what());
      if (fault.fatal) return found;
    }
  }
}

void check_identity(const Decoder& decoder) {
  require(decoder.id().size() <= 1024 && is_utf8(bytes(decoder.id())),
          "an id is text of at most 1,024 bytes");
  require(!decoder.unlabelled() || decoder.labels().empty(), "without labels there are none");
  for (const int64_t label : decoder.labels()) require(label >= 0, "labels are at least 0");
}

void check(FrameDecoder& decoder, Bytes record) {
  decoder.decode(record);
  check_identity(decoder);
  require(decoder.frames() > 0, "there are frames");
  std::vector<uint8_t> frames(decoder.frames() * decoder.width());
  decoder.copy(frames.data());
  if (!decoder.rated()) return;
  const Ratings& ratings = decoder.ratings();
  require(ratings.starts.size() == ratings.classes.size() &&
              ratings.starts.size() == ratings.scores.size(),
          "as many starts, classes and scores");
  for (size_t i = 0; i < ratings.starts.size(); ++i) {
    require(ratings.starts[i] >= 0 && ratings.starts[i] < static_cast<int64_t>(decoder.frames()),
            "a rated segment starts within the video");
    require(ratings.scores[i] >= 0 && ratings.scores[i] <= 1, "scores are from 0 to 1");
  }
}

void check(VideoDecoder& decoder, Bytes record) {
  std::vector<float> features(decoder.width());
  decoder.decode(record, features.data());
  check_identity(decoder);
}

// Decodes each of the records, or refuses it.
template <typename AnyDecoder>
void check(const std::vector<std::string>& records, AnyDecoder decoder) {
  for (const std::string& record : records) {
    // On the heap, and of exactly this size: the sanitizer sees every read past the end.
    const std::vector<uint8_t> exact(record.begin(), record.end());
    try {
      check(decoder, Bytes{exact.data(), exact.data() + exact.size()});
    } catch (const Wrong& wrong) {
      require(std::strstr(wrong.what(), "expected") != nullptr, "an error says what was expected");
    }
  }
}

// ---- mutating

std::string varint(uint64_t number) {
  std::string text;
  for (; number > 0x7F; number >>= 7) text += static_cast<char>((number & 0x7F) | 0x80);
  return text + static_cast<char>(number);
}

template <typename Number>
std::string stored(Number number) {
  return {reinterpret_cast<const char*>(&number), sizeof(number)};
}

uint32_t checksum(std::string_view text) { return mask(crc32c(bytes(text).begin, text.size())); }

std::string framed(std::string_view payload) {
  const std::string length = stored(uint64_t{payload.size()});
  return length + stored(checksum(length)) + std::string(payload) + stored(checksum(payload));
}

using Random = std::minstd_rand;

std::string mutated_bytes(std::string_view text, size_t room) {
  std::string result(text);
  result.resize(text.size() + room);
  result.resize(
      LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(result.data()), text.size(), result.size()));
  return result;
}

struct Field {
  std::string tag;
  bool is_nested;  // length-delimited
  std::string content;

  std::string encoded() const { return tag + (is_nested ? varint(content.size()) : "") + content; }
};

std::vector<Field> fields_of(std::string_view message) {
  std::vector<Field> fields;
  Cursor cursor(bytes(message), bytes(message).begin);
  while (!cursor.done()) {
    const Cursor::Tag tag = cursor.tag();
    const auto text = [](const uint8_t* begin, const uint8_t* end) {
      return std::string(begin, end);
    };
    Field field{text(tag.start, cursor.at()), tag.wire == Cursor::kLength, {}};
    const uint8_t* start = cursor.at();
    if (field.is_nested) {
      const Bytes content = cursor.length();
      field.content = text(content.begin, content.end);
    } else {
      cursor.skip(tag);
      field.content = text(start, cursor.at());
    }
    fields.push_back(std::move(field));
  }
  return fields;
}

// Changes, repeats, moves or drops a field of a message or of one nested in it.
std::string mutated(std::string_view message, size_t room, Random& random) {
  std::vector<Field> fields;
  try {
    fields = fields_of(message);
  } catch (const Wrong&) {
  }
  if (fields.empty() || random() % 8 == 0) return mutated_bytes(message, room);
  const size_t at = random() % fields.size();
  const size_t other = random() % fields.size();
  switch (random() % 12) {
    case 0:
      fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(at));
      break;
    case 1:
      if (fields[at].encoded().size() <= room) fields.push_back(Field(fields[at]));
      break;
    case 2:
      std::swap(fields[at], fields[other]);
      break;
    case 3:
      fields[at].tag = mutated_bytes(fields[at].tag, 1);
      break;
    default:
      fields[at].content = mutated(fields[at].content, room, random);
  }
  std::string result;
  for (const Field& field : fields) result += field.encoded();
  return result;
}

// The payloads of a file, as far as its lengths locate them.
std::vector<std::string> payloads_of(std::string_view file) {
  std::vector<std::string> payloads;
  while (file.size() >= 16) {
    uint64_t length;
    std::memcpy(&length, file.data(), sizeof(length));
    if (length > file.size() - 16) break;
    payloads.emplace_back(file.substr(12, length));
    file.remove_prefix(16 + length);
  }
  return payloads;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  const std::vector<std::string> records = read(file, size + 1, static_cast<int64_t>(size));
  require(read(file, 13, -1) == records, "pieces make no difference");
  check(records, FrameDecoder({{"rgb", 6}, {"audio", 3}}, "id", "labels", 5, 0, {}));
  check(records, FrameDecoder({{"audio", 3}}, "id", "", 5, 2, {"labels", "start"}));
  check(records, VideoDecoder({{"mean_rgb", 3}, {"mean_audio", 2}}, "id", "labels"));
  check(records, VideoDecoder({}, "id", "labels"));
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned int seed) {
  Random random(seed);
  if (random() % 10 == 0) return LLVMFuzzerMutate(data, size, max_size);
  std::vector<std::string> payloads = payloads_of({reinterpret_cast<const char*>(data), size});
  if (payloads.empty()) payloads.emplace_back();
  const size_t at = random() % payloads.size();
  switch (random() % 16) {
    case 0:
      if (payloads.size() > 1) payloads.erase(payloads.begin() + static_cast<std::ptrdiff_t>(at));
      break;
    case 1:
      payloads.push_back(std::string(payloads[at]));
      break;
    default:
      payloads[at] = mutated(payloads[at], 64, random);
  }
  std::string file;
  for (const std::string& payload : payloads) file += framed(payload);
  if (file.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, file.data(), file.size());
  return file.size();
}
