// YouTube-8M records: frame-level features with or without rated segments, and video-level mean
// features.
//
// pyseg/data/records/reference.py is the reference; its error texts and the order of its checks
// are the same: change both.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "message.h"

namespace pyseg::records {

using Features = std::vector<std::pair<std::string, uint32_t>>;  // name and width

inline bool is_utf8(Bytes text) {
  for (const uint8_t* at = text.begin; at != text.end;) {
    const uint8_t lead = *at++;
    if (lead < 0x80) continue;
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    if (lead < 0xC2 || lead > 0xF4 || text.end - at < more) return false;
    // The second byte also rules out overlong forms, surrogates, and code points past U+10FFFF.
    const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (*at < low || *at > high) return false;
    for (int i = 1; i < more; ++i) {
      if ((at[i] & 0xC0) != 0x80) return false;
    }
    at += more;
  }
  return true;
}

// The id and the labels, which both kinds of record have.
class Decoder {
 public:
  std::string_view id() const { return id_.text(); }
  const std::vector<int64_t>& labels() const { return labels_; }
  // Whether the record lacks the feature with its labels.
  bool unlabelled() const { return unlabelled_; }

 protected:
  static constexpr size_t kLongestId = 1024;
  static constexpr uint32_t kAnyKind = UINT32_MAX;
  static constexpr size_t kAnySize = SIZE_MAX;

  // An empty `labels_key` means that there are no labels.
  Decoder(const std::string& id_key, const std::string& labels_key)
      : id_name_(context_.add(id_key)), has_labels_(!labels_key.empty()) {
    if (has_labels_) labels_name_ = context_.add(labels_key);
  }

  void parse(Message& message, Bytes record) {
    message.parse(record, context_, lists_);
    required(message, id_name_, kBytes, 1);
    id_ = value_.strings[0];
    if (id_.size() > kLongestId) {
      throw Wrong("expected at most " + std::to_string(kLongestId) + " bytes in context feature " +
                  show(context_[id_name_]) + ", found " + std::to_string(id_.size()));
    }
    if (!is_utf8(id_)) {
      throw Wrong("expected UTF-8 text in context feature " + show(context_[id_name_]) +
                  ", found " + show(id_.text()));
    }
    labels_.clear();
    const bool labelled = has_labels_ && optional(message, labels_name_, kInt64, kAnySize);
    unlabelled_ = has_labels_ && !labelled;
    if (labelled) {
      check_not_negative(value_.ints, context_[labels_name_]);
      labels_.swap(value_.ints);
    }
  }

  // Parses a context feature into value_ and checks its kind and size; false if it is missing.
  bool optional(const Message& message, size_t name, uint32_t kind, size_t size) {
    const Message::Slot& slot = message.context(name);
    if (!slot.found) return false;
    value_.parse(slot.spans.data(), slot.spans.size(), message.origin());
    if (value_.kind == kNone) return false;  // missing for TensorFlow too
    if (kind != kAnyKind && value_.kind != kind) {
      throw Wrong(std::string("expected ") + kKinds[kind] + " in context feature " +
                  show(context_[name]) + ", found " + kKinds[value_.kind]);
    }
    if (size != kAnySize && value_.size() != size) {
      const std::string values = size == 1 ? "1 value" : std::to_string(size) + " values";
      throw Wrong("expected " + values + " in context feature " + show(context_[name]) +
                  ", found " + std::to_string(value_.size()));
    }
    return true;
  }

  void required(Message& message, size_t name, uint32_t kind, size_t size) {
    if (!optional(message, name, kind, size)) message.missing("context feature", context_[name]);
  }

  static void check_not_negative(const std::vector<int64_t>& numbers, const std::string& name) {
    for (const int64_t number : numbers) {
      if (number < 0) {
        throw Wrong("expected numbers of at least 0 in context feature " + show(name) + ", found " +
                    std::to_string(number));
      }
    }
  }

  Names context_;
  Names lists_;
  Value value_;

 private:
  Bytes id_;
  std::vector<int64_t> labels_;
  size_t id_name_;
  size_t labels_name_ = 0;
  bool has_labels_;
  bool unlabelled_ = false;
};

// Rated segments: pairs of a segment and a class, and the numbers of corrections.
struct Ratings {
  std::vector<int64_t> starts;
  std::vector<int64_t> classes;
  std::vector<float> scores;
  size_t dropped;     // segments that start at or past the end of the video
  size_t cut;         // segments, kept, that the end cuts short
  size_t duplicates;  // ratings overwritten by a later one
  // Start and end of the first kept segment that ends elsewhere than `segment_size` frames after
  // its start or at the end of the video; empty if there is none.
  std::vector<int64_t> misfit;
};

// A context feature of one value.
struct Scalar {
  uint32_t kind;
  std::string text;
  double real;
  int64_t integer;
};

// Decodes frame-level records. Results are valid until the next record is decoded or the record's
// bytes are freed.
class FrameDecoder : public Decoder {
 public:
  // `max_frames` 0 keeps all frames.
  FrameDecoder(const Features& features, const std::string& id_key, const std::string& labels_key,
               int64_t segment_size, size_t max_frames,
               const std::vector<std::string>& context_keys)
      : Decoder(id_key, labels_key),
        segment_size_(segment_size),
        max_frames_(max_frames),
        starts_name_(context_.add("segment_start_times")),
        ends_name_(context_.add("segment_end_times")),
        classes_name_(context_.add("segment_labels")),
        scores_name_(context_.add("segment_scores")) {
    for (const std::string& key : context_keys) extra_names_.push_back(context_.add(key));
    for (const auto& [name, width] : features) {
      columns_.push_back({lists_.add(name), width, row_header(width), {}});
      width_ += width;
    }
    message_ = std::make_unique<Message>(context_, lists_);
  }

  size_t width() const { return width_; }
  size_t frames() const { return frames_; }
  bool rated() const { return rated_; }
  const Ratings& ratings() const { return ratings_; }
  const std::vector<Scalar>& extra() const { return extra_; }

  void decode(Bytes record) {
    parse(*message_, record);
    extra_.clear();
    for (const size_t name : extra_names_) {
      required(*message_, name, kAnyKind, 1);
      Scalar scalar{value_.kind, {}, 0, 0};
      if (value_.kind == kBytes) scalar.text = value_.strings[0].text();
      if (value_.kind == kInt64) scalar.integer = value_.ints[0];
      if (value_.kind == kFloat) {
        float real;
        value_.copy_floats(&real);
        scalar.real = real;
      }
      extra_.push_back(std::move(scalar));
    }
    for (Column& column : columns_) find_rows(column);
    const Column& first = columns_[0];
    if (first.rows.empty()) {
      throw Wrong("expected at least 1 frame in feature list " + show(lists_[first.name]) +
                  ", found 0");
    }
    for (const Column& column : columns_) {
      if (column.rows.size() != first.rows.size()) {
        throw Wrong("expected as many frames in feature list " + show(lists_[column.name]) +
                    " as in " + show(lists_[first.name]) + " (" +
                    std::to_string(first.rows.size()) + "), found " +
                    std::to_string(column.rows.size()));
      }
    }
    frames_ = first.rows.size();
    if (max_frames_) frames_ = std::min(frames_, max_frames_);
    rated_ = decode_ratings();
  }

  // Writes the frames, (frames(), width()), the columns side by side.
  void copy(uint8_t* to) const {
    for (size_t frame = 0; frame < frames_; ++frame) {
      for (const Column& column : columns_) {
        std::memcpy(to, column.rows[frame], column.width);
        to += column.width;
      }
    }
  }

 private:
  struct Column {
    size_t name;
    uint32_t width;
    std::string header;
    std::vector<const uint8_t*> rows;
  };

  // The encoding before the bytes of a frame, the same from every known writer: tags and lengths of
  // the Feature in its FeatureList, the BytesList in the Feature, and the bytes in the BytesList.
  static std::string row_header(uint32_t width) {
    std::string header;
    for (int depth = 0; depth < 3; ++depth) {
      std::string outer = "\x0A";
      size_t length = header.size() + width;
      for (; length > 0x7F; length >>= 7) outer += static_cast<char>((length & 0x7F) | 0x80);
      outer += static_cast<char>(length);
      header = outer + header;
    }
    return header;
  }

  void find_rows(Column& column) {
    column.rows.clear();
    const Message::Slot& slot = message_->list(column.name);
    if (!slot.found) message_->missing("feature list", lists_[column.name]);
    const std::string& header = column.header;
    for (const Bytes& span : slot.spans) {
      Cursor list(span, message_->origin());
      while (!list.done()) {
        if (list.left() >= header.size() + column.width &&
            std::memcmp(list.at(), header.data(), header.size()) == 0) {
          column.rows.push_back(list.at() + header.size());
          list.advance(header.size() + column.width);
          continue;
        }
        const Cursor::Tag tag = list.tag();  // another valid encoding, or an error
        if (tag.field == 1 && tag.wire == Cursor::kLength) {
          column.rows.push_back(row(column, list.length()));
        } else {
          list.skip(tag);
        }
      }
    }
  }

  const uint8_t* row(const Column& column, Bytes feature) {
    value_.parse(&feature, 1, message_->origin());
    const auto where = [&] {
      return "frame " + std::to_string(column.rows.size()) + " of feature list " +
             show(lists_[column.name]);
    };
    if (value_.kind != kBytes)
      throw Wrong("expected bytes in " + where() + ", found " + kKinds[value_.kind]);
    if (value_.size() != 1) {
      throw Wrong("expected 1 value in " + where() + ", found " + std::to_string(value_.size()));
    }
    const Bytes bytes = value_.strings[0];
    if (bytes.size() != column.width) {
      throw Wrong("expected " + std::to_string(column.width) + " bytes in " + where() + ", found " +
                  std::to_string(bytes.size()));
    }
    return bytes.begin;
  }

  bool decode_ratings() {
    Ratings& r = ratings_;
    std::vector<int64_t> starts, classes;
    std::vector<float> scores;
    const bool has_starts = optional(*message_, starts_name_, kInt64, kAnySize);
    if (has_starts) starts.swap(value_.ints);
    const bool has_classes = optional(*message_, classes_name_, kInt64, kAnySize);
    if (has_classes) classes.swap(value_.ints);
    const bool has_scores = optional(*message_, scores_name_, kFloat, kAnySize);
    if (has_scores) {
      scores.resize(value_.size());
      value_.copy_floats(scores.data());
    }
    if (!has_starts && !has_classes && !has_scores) return false;
    if (!has_starts) message_->missing("context feature", context_[starts_name_]);
    if (!has_classes) message_->missing("context feature", context_[classes_name_]);
    if (!has_scores) message_->missing("context feature", context_[scores_name_]);
    const bool has_ends = optional(*message_, ends_name_, kInt64, kAnySize);
    const auto check_size = [&](size_t name, size_t size) {
      if (size != starts.size()) {
        throw Wrong("expected as many values in context feature " + show(context_[name]) +
                    " as in " + show(context_[starts_name_]) + " (" +
                    std::to_string(starts.size()) + "), found " + std::to_string(size));
      }
    };
    check_size(classes_name_, classes.size());
    check_size(scores_name_, scores.size());
    std::vector<int64_t> ends;
    if (has_ends) {
      ends.swap(value_.ints);
      check_size(ends_name_, ends.size());
    }
    check_not_negative(starts, context_[starts_name_]);
    check_not_negative(classes, context_[classes_name_]);
    for (const float score : scores) {
      if (!(score >= 0 && score <= 1)) {
        char found[32] = "nan";  // printf would show its sign
        if (!std::isnan(score))
          std::snprintf(found, sizeof(found), "%g", static_cast<double>(score));
        throw Wrong("expected scores from 0 to 1 in " + show(context_[scores_name_]) + ", found " +
                    found);
      }
    }

    r.starts.clear();
    r.classes.clear();
    r.scores.clear();
    r.duplicates = 0;
    r.misfit.clear();
    std::map<std::pair<int64_t, int64_t>, size_t> rated;
    std::set<int64_t> dropped, cut;
    const auto end = static_cast<int64_t>(frames_);
    for (size_t i = 0; i < starts.size(); ++i) {
      if (starts[i] >= end) {
        dropped.insert(starts[i]);
        continue;
      }
      if (starts[i] > end - segment_size_) cut.insert(starts[i]);
      // Unsigned, since a length of damaged numbers may overflow.
      const auto length =
          static_cast<uint64_t>(has_ends ? ends[i] : 0) - static_cast<uint64_t>(starts[i]);
      const auto size = static_cast<uint64_t>(segment_size_);
      if (has_ends && r.misfit.empty() && length != size && (ends[i] < end || length > size)) {
        r.misfit = {starts[i], ends[i]};
      }
      const auto [place, is_new] = rated.try_emplace({starts[i], classes[i]}, r.starts.size());
      if (!is_new) {
        ++r.duplicates;
        r.scores[place->second] = scores[i];  // the last score wins, at the position of the first
        continue;
      }
      r.starts.push_back(starts[i]);
      r.classes.push_back(classes[i]);
      r.scores.push_back(scores[i]);
    }
    r.dropped = dropped.size();
    r.cut = cut.size();
    return true;
  }

  int64_t segment_size_;
  size_t max_frames_;
  size_t starts_name_, ends_name_, classes_name_, scores_name_;
  std::vector<size_t> extra_names_;
  std::vector<Column> columns_;
  size_t width_ = 0;
  std::unique_ptr<Message> message_;
  size_t frames_ = 0;
  bool rated_ = false;
  Ratings ratings_;
  std::vector<Scalar> extra_;
};

// Decodes video-level records. Results are valid until the next record is decoded or the record's
// bytes are freed.
class VideoDecoder : public Decoder {
 public:
  VideoDecoder(const Features& features, const std::string& id_key, const std::string& labels_key)
      : Decoder(id_key, labels_key) {
    for (const auto& [name, width] : features) {
      features_.emplace_back(context_.add(name), width);
      width_ += width;
    }
    message_ = std::make_unique<Message>(context_, lists_);
  }

  size_t width() const { return width_; }

  // Writes the features, (width()), side by side.
  void decode(Bytes record, float* to) {
    parse(*message_, record);
    for (const auto& [name, width] : features_) {
      required(*message_, name, kFloat, width);
      value_.copy_floats(to);
      to += width;
    }
  }

 private:
  std::vector<std::pair<size_t, uint32_t>> features_;
  size_t width_ = 0;
  std::unique_ptr<Message> message_;
};

}  // namespace pyseg::records
