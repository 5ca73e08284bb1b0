// The record reader without Python: checksums, framing, decoding, and damaged input.
//
//     test_records                      the tests, on generated records
//     test_records FILE                 in addition, corrupts and truncates a TFRecord file 2,500
//                                       times
//
// It is also built with the address and undefined-behaviour sanitizers, for the random corruption.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "crc32c.h"
#include "decode.h"
#include "message.h"
#include "pool.h"
#include "reader.h"

namespace {

using namespace pyseg::records;  // NOLINT

int failures = 0;

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                           \
    }                                                                       \
  } while (false)

const uint8_t* bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

uint32_t checksum(std::string_view text) { return crc32c(bytes(text), text.size()); }

// Serves a heap copy of exactly the data's size, in pieces, so that the sanitizer sees every read
// past the end.
class MemorySource final : public Source {
 public:
  MemorySource(std::string_view data, size_t piece) : data_(data), piece_(piece) {}

  size_t read(uint8_t* to, size_t count) override {
    count = std::min({count, piece_, data_.size() - at_});
    std::memcpy(to, data_.data() + at_, count);
    at_ += count;
    return count;
  }

 private:
  std::string data_;
  size_t piece_;
  size_t at_ = 0;
};

// ---- a writer

std::string little_endian(uint64_t number, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) text += static_cast<char>(number >> (8 * i) & 0xFF);
  return text;
}

std::string framed(std::string_view payload) {
  const std::string length = little_endian(payload.size(), 8);
  return length + little_endian(mask(checksum(length)), 4) + std::string(payload) +
         little_endian(mask(checksum(payload)), 4);
}

std::string varint(uint64_t number) {
  std::string text;
  for (; number > 0x7F; number >>= 7) text += static_cast<char>((number & 0x7F) | 0x80);
  return text + static_cast<char>(number);
}

std::string field(uint32_t number, std::string_view content) {
  return varint(number << 3 | 2) + varint(content.size()) + std::string(content);
}

std::string entry(std::string_view key, std::string_view value) {
  return field(1, field(1, key) + field(2, value));
}

std::string text_feature(std::string_view text) { return field(1, field(1, text)); }

std::string int_feature(const std::vector<uint64_t>& numbers) {
  std::string packed;
  for (const uint64_t number : numbers) packed += varint(number);
  return field(3, field(1, packed));
}

std::string float_feature(const std::vector<float>& numbers) {
  std::string packed(numbers.size() * sizeof(float), '\0');
  if (!numbers.empty()) std::memcpy(packed.data(), numbers.data(), packed.size());
  return field(2, field(1, packed));
}

std::string frame_list(size_t frames, size_t width, uint8_t first) {
  std::string list;
  for (size_t t = 0; t < frames; ++t) {
    list += field(1, text_feature(std::string(width, static_cast<char>(first + t))));
  }
  return list;
}

std::string frame_record(size_t frames) {
  return field(1, entry("id", text_feature("06xy")) + entry("labels", int_feature({4, 300})) +
                      entry("segment_start_times", int_feature({0, 5, 99, 5})) +
                      entry("segment_labels", int_feature({3, 4, 5, 4})) +
                      entry("segment_scores", float_feature({1, 0, 1, 0.5}))) +
         field(2, entry("rgb", frame_list(frames, 20, 0)) +
                      entry("audio", frame_list(frames, 3, 100)));
}

std::string video_record() {
  return field(1, entry("id", text_feature("gr\xC3\xB6\xC3\x9F"
                                           "e")) +
                      entry("labels", int_feature({1})) + entry("mean_rgb", float_feature({1, 2})) +
                      entry("mean_audio", float_feature({3})));
}

FrameDecoder frame_decoder() {
  return FrameDecoder({{"rgb", 20}, {"audio", 3}}, "id", "labels", 5, 0, {});
}

// ---- tests

void test_checksums() {
  std::string counting;
  for (int i = 0; i < 32; ++i) counting += static_cast<char>(i);
  // RFC 3720, appendix B.4
  CHECK(checksum("") == 0);
  CHECK(checksum("123456789") == 0xE3069283);
  CHECK(checksum(std::string(32, '\0')) == 0x8A9136AA);
  CHECK(checksum(std::string(32, '\xFF')) == 0x62A8AB43);
  CHECK(checksum(counting) == 0x46DD794E);

  std::mt19937_64 random(1);
  std::string data(60'000, '\0');
  for (char& c : data) c = static_cast<char>(random());
  for (size_t size : {0, 1, 7, 8, 9, 255, 767, 768, 769, 12'287, 12'288, 13'100, 24'576, 59'990}) {
    for (const size_t start : {0, 1, 5}) {
      const uint8_t* from = bytes(data) + start;
      const uint32_t expected = crc::extend_portable(0, from, size);
      CHECK(crc32c(from, size) == expected);
      CHECK(crc32c(from + size / 3, size - size / 3, crc32c(from, size / 3)) == expected);
    }
  }
}

std::vector<std::string> read_all(std::string_view data, size_t piece, int64_t size,
                                  std::string* error) {
  Reader reader(std::make_unique<MemorySource>(data, piece), size);
  std::vector<std::string> found;
  error->clear();
  try {
    Bytes payload;
    while (reader.next(&payload)) found.emplace_back(payload.text());
  } catch (const Fault& fault) {
    CHECK(fault.record == found.size());
    *error = fault.what();
  }
  return found;
}

void test_framing() {
  std::mt19937_64 random(2);
  std::vector<std::string> payloads;
  std::string file;
  for (const size_t size : {0, 1, 12, 300'000, 5, 262'128, 262'144, 1, 700'000, 4'695, 4'695, 0}) {
    payloads.emplace_back(size, static_cast<char>(random()));
    file += framed(payloads.back());
  }
  std::string error;
  for (const size_t piece : {size_t{1'000}, size_t{65'536}, file.size()}) {
    for (const int64_t size : {int64_t{-1}, static_cast<int64_t>(file.size())}) {
      CHECK(read_all(file, piece, size, &error) == payloads);
      CHECK(error.empty());
    }
  }

  const std::string two = framed("first") + framed("second");
  for (size_t length = 0; length < two.size(); ++length) {
    const std::string_view cut = std::string_view(two).substr(0, length);
    for (const int64_t size : {int64_t{-1}, static_cast<int64_t>(length)}) {
      CHECK(read_all(cut, 7, size, &error).size() == (length >= 21 ? 1 : 0));
      CHECK(error.empty() == (length == 0 || length == 21));
    }
  }

  // Truncated since it was opened, between two records.
  CHECK(read_all(two.substr(0, 21), 7, 43, &error).size() == 1);
  CHECK(error == "expected 43 bytes in the file, found 21");
  CHECK(read_all("", 7, 43, &error).empty());
  CHECK(error == "expected 43 bytes in the file, found 0");

  Reader bounded(std::make_unique<MemorySource>(two, 7), -1, 5);
  Bytes payload;
  CHECK(bounded.next(&payload));
  try {
    bounded.next(&payload);
    CHECK(false);
  } catch (const Fault& fault) {
    CHECK(fault.fatal && fault.record == 1);
    CHECK(std::strstr(fault.what(), "at most 5 bytes in a record") != nullptr);
  }

  // A length with a valid checksum that must not be allocated.
  const std::string length = little_endian(INT32_MAX, 8);
  const std::string absurd = length + little_endian(mask(checksum(length)), 4) + "x";
  for (const int64_t size : {int64_t{-1}, static_cast<int64_t>(absurd.size())}) {
    CHECK(read_all(absurd, 7, size, &error).empty());
    CHECK(error == "expected 2147483647 bytes of payload, found 1 before the end of the file");
  }
}

void test_frames() {
  const std::string file = framed(frame_record(7)) + framed(frame_record(300));
  Reader reader(std::make_unique<MemorySource>(file, 4'096));
  FrameDecoder decoder = frame_decoder();
  for (const size_t frames : {7, 300}) {
    CHECK(reader.decode(0, 1, [&](Bytes record) { decoder.decode(record); }));
    CHECK(decoder.id() == "06xy");
    CHECK(decoder.labels() == (std::vector<int64_t>{4, 300}));
    CHECK(decoder.frames() == frames);
    std::vector<uint8_t> copy(frames * decoder.width());
    decoder.copy(copy.data());
    for (size_t t = 0; t < frames; ++t) {
      CHECK(copy[t * 23] == static_cast<uint8_t>(t));
      CHECK(copy[t * 23 + 19] == static_cast<uint8_t>(t));
      CHECK(copy[t * 23 + 20] == static_cast<uint8_t>(100 + t));
    }
    const bool is_short = frames == 7;
    CHECK(decoder.rated());
    CHECK(decoder.ratings().starts.size() == (is_short ? 2 : 3));
    CHECK(decoder.ratings().scores[1] == 0.5);
    CHECK(decoder.ratings().dropped == (is_short ? 1 : 0));
    CHECK(decoder.ratings().cut == (is_short ? 1 : 0));
    CHECK(decoder.ratings().duplicates == 1);
  }
  CHECK(!reader.decode(0, 1, [](Bytes) {}));
}

void test_empty_ratings() {
  const std::string record =
      field(1, entry("id", text_feature("")) + entry("labels", int_feature({})) +
                   entry("segment_start_times", int_feature({})) +
                   entry("segment_labels", int_feature({})) +
                   entry("segment_scores", float_feature({}))) +
      field(2, entry("rgb", frame_list(1, 20, 0)) + entry("audio", frame_list(1, 3, 0)));
  FrameDecoder decoder = frame_decoder();
  decoder.decode({bytes(record), bytes(record) + record.size()});
  CHECK(decoder.id().empty());
  CHECK(decoder.labels().empty());
  CHECK(decoder.rated());
  CHECK(decoder.ratings().starts.empty());
}

void test_without_labels() {
  const std::string lists =
      field(2, entry("rgb", frame_list(1, 20, 0)) + entry("audio", frame_list(1, 3, 0)));
  FrameDecoder decoder = frame_decoder();
  for (const bool labelled : {true, false, true}) {
    std::string context = entry("id", text_feature("06xy"));
    if (labelled) context += entry("labels", int_feature({7}));
    const std::string record = field(1, context) + lists;
    decoder.decode({bytes(record), bytes(record) + record.size()});
    CHECK(decoder.unlabelled() != labelled);
    CHECK(decoder.labels().size() == (labelled ? 1 : 0));
  }
}

void test_long_id() {
  VideoDecoder decoder({}, "id", "");
  for (const size_t size : {1024, 1025}) {
    const std::string record = field(1, entry("id", text_feature(std::string(size, 'a'))));
    bool refused = false;
    try {
      decoder.decode({bytes(record), bytes(record) + record.size()}, nullptr);
      CHECK(decoder.id().size() == size);
    } catch (const Wrong&) {
      refused = true;
    }
    CHECK(refused == (size > 1024));
  }
}

void test_videos() {
  const std::string file = framed(video_record()) + framed(video_record() + field(2, ""));
  Reader reader(std::make_unique<MemorySource>(file, 64));
  VideoDecoder decoder({{"mean_rgb", 2}, {"mean_audio", 1}}, "id", "labels");
  for (int i = 0; i < 2; ++i) {
    float features[3] = {};
    CHECK(reader.decode(0, 1, [&](Bytes record) { decoder.decode(record, features); }));
    CHECK(decoder.id() ==
          "gr\xC3\xB6\xC3\x9F"
          "e");
    CHECK(features[0] == 1 && features[1] == 2 && features[2] == 3);
  }
}

void test_text() {
  for (const std::string_view good :
       {"", "a", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEF\xBF\xBF",
        "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    CHECK(is_utf8({bytes(good), bytes(good) + good.size()}));
  }
  for (const std::string_view bad :
       {"\x80", "\xC1\xBF", "\xC2", "\xC2\x41", "\xE0\x9F\xBF", "\xE1\x80", "\xED\xA0\x80",
        "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xF0\x90\x80", "a\xFF"}) {
    CHECK(!is_utf8({bytes(bad), bytes(bad) + bad.size()}));
  }
  CHECK(show("a'\\\n\xFF") == "'a\\x27\\x5c\\x0a\\xff'");
}

void test_pool() {
  Pool pool(1'000'000);
  void* first = pool.take(300'000);
  std::memset(first, 1, 300'000);
  pool.give(first, 300'000);
  CHECK(pool.idle_bytes() >= 300'000);
  void* again = pool.take(299'000);  // slightly smaller: the same block
  CHECK(again == first);
  CHECK(pool.idle_bytes() == 0);
  void* other = pool.take(600'000);
  void* third = pool.take(300'000);
  pool.give(again, 299'000);
  pool.give(other, 600'000);
  pool.give(third, 300'000);  // too many idle bytes: freed
  CHECK(pool.idle_bytes() <= 1'000'000);
}

// Decodes records with random changes and valid checksums: the decoder must decode them or throw
// Wrong.
void test_random_records() {
  std::mt19937_64 random(3);
  const std::vector<std::string> originals = {frame_record(1), frame_record(6), frame_record(40),
                                              video_record()};
  FrameDecoder frames = frame_decoder();
  FrameDecoder few({{"audio", 3}}, "id", "labels", 5, 2, {"id", "labels", "segment_labels"});
  VideoDecoder videos({{"mean_rgb", 2}, {"mean_audio", 1}}, "id", "labels");
  size_t good = 0, bad = 0;
  for (int trial = 0; trial < 60'000; ++trial) {
    std::string record = originals[random() % originals.size()];
    for (int change = static_cast<int>(random() % 4); change >= 0; --change) {
      const size_t at = random() % (record.size() + 1);
      switch (random() % 5) {
        case 0:
          if (at < record.size()) record[at] = static_cast<char>(random());
          break;
        case 1:
          if (at < record.size()) record[at] ^= static_cast<char>(1 << random() % 8);
          break;
        case 2:
          record.insert(at, 1 + random() % 3, static_cast<char>(random()));
          break;
        case 3:
          record.erase(at, 1 + random() % 12);
          break;
        default:
          if (random() % 4 == 0) record.resize(at);
      }
    }
    // On the heap, and of exactly this size.
    const std::vector<uint8_t> exact(record.begin(), record.end());
    const Bytes span{exact.data(), exact.data() + exact.size()};
    float features[3];
    for (int decoder = 0; decoder < 3; ++decoder) {
      try {
        if (decoder == 2) {
          videos.decode(span, features);
        } else {
          FrameDecoder& mine = decoder ? few : frames;
          mine.decode(span);
          std::vector<uint8_t> copy(mine.frames() * mine.width());
          mine.copy(copy.data());
        }
        ++good;
      } catch (const Wrong& wrong) {
        CHECK(std::strstr(wrong.what(), "expected") != nullptr);
        ++bad;
      }
    }
  }
  CHECK(good > 1'000);
  CHECK(bad > 1'000);
}

// Changes a byte of a file or truncates it: reading must give the same records up to some point,
// and then the end or a Fault.
void check_faults(const std::string& file, size_t corruptions, size_t truncations) {
  std::string error;
  const std::vector<std::string> whole = read_all(file, file.size(), -1, &error);
  CHECK(error.empty());
  std::mt19937_64 random(4);
  FrameDecoder frames({{"rgb", 1024}, {"audio", 128}}, "id", "labels", 5, 0, {});
  VideoDecoder videos({{"mean_rgb", 1024}, {"mean_audio", 128}}, "id", "labels");
  std::vector<float> features(videos.width());
  size_t faults = 0;
  for (size_t trial = 0; trial < corruptions + truncations; ++trial) {
    std::string spoilt = file;
    const size_t at = random() % file.size();
    if (trial < corruptions) {
      spoilt[at] ^= static_cast<char>(1 + random() % 255);
    } else {
      spoilt.resize(at);
    }
    const int64_t size = trial % 2 ? static_cast<int64_t>(spoilt.size()) : -1;
    const std::vector<std::string> found = read_all(spoilt, 1 + random() % 400'000, size, &error);
    CHECK(found.size() <= whole.size());
    CHECK(std::equal(found.begin(), found.end(), whole.begin()));
    CHECK(!error.empty() || found.size() == whole.size() ||
          (trial >= corruptions && (spoilt.empty() || !found.empty())));  // between two records
    faults += !error.empty();
    for (const std::string& record : found) {
      const Bytes span{bytes(record), bytes(record) + record.size()};
      try {
        videos.decode(span, features.data());
      } catch (const Wrong&) {
        try {
          frames.decode(span);
          std::vector<uint8_t> copy(frames.frames() * frames.width());
          frames.copy(copy.data());
        } catch (const Wrong&) {
        }
      }
    }
  }
  std::printf("%zu records, %zu corruptions and %zu truncations: %zu faults found\n", whole.size(),
              corruptions, truncations, faults);
}

}  // namespace

int main(int count, char** arguments) {
  test_checksums();
  test_framing();
  test_frames();
  test_empty_ratings();
  test_without_labels();
  test_long_id();
  test_videos();
  test_text();
  test_pool();
  test_random_records();
  std::string generated;
  for (size_t frames = 1; frames < 12; ++frames) generated += framed(frame_record(frames));
  check_faults(generated, 2'000, 500);
  if (count > 1) {
    std::ifstream stream(arguments[1], std::ios::binary);
    const std::string file((std::istreambuf_iterator<char>(stream)), {});
    CHECK(!file.empty());
    if (!file.empty()) check_faults(file, 2'000, 500);
  }
  if (failures) std::printf("%d checks failed\n", failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
