// Scores the segments of records without Python, with a model that
// `python -m pyseg.export --format aoti` has compiled:
//
//     build/score model-aoti.pt2 [--top K] videos.tfrecord ...
//
// It prints a line for each segment and each of its K best classes: the segment as "video:frame",
// the probability and the name of the class.
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "decode.h"
#include "json.h"
#include "reader.h"

namespace {

constexpr size_t kBatch = 256;  // segments

// An exported model, and what it says about itself.
class Model {
 public:
  explicit Model(const std::string& path) : loader_(path) {
    const auto metadata = loader_.get_metadata();
    if (!metadata.count("class_names.json") || !metadata.count("features.json")) {
      throw std::runtime_error("expected a file of pyseg.export, found another package");
    }
    for (const Json& name : Json::parse(metadata.at("class_names.json")).items) {
      names_.push_back(name.text);
    }
    const Json described = Json::parse(metadata.at("features.json"));
    for (const Json& feature : described["features"].items) {
      features_.emplace_back(feature["name"].text,
                             static_cast<uint32_t>(feature["width"].integer()));
      width_ += features_.back().second;
    }
    segment_size_ = described["segment_size"].integer();
    id_key_ = described["id_key"].text;
  }

  const std::vector<std::string>& names() const { return names_; }
  int64_t width() const { return width_; }
  int64_t segment_size() const { return segment_size_; }

  pyseg::records::FrameDecoder decoder() const {
    return {features_, id_key_, "", segment_size_, 0, {}};
  }

  // (S, classes) probabilities of S segments: frames (S, segment size, width), numbers (S,).
  at::Tensor operator()(const at::Tensor& frames, const at::Tensor& num_frames) {
    return loader_.run({frames, num_frames})[0].contiguous();
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
  std::vector<std::string> names_;
  pyseg::records::Features features_;
  int64_t width_ = 0;
  int64_t segment_size_ = 0;
  std::string id_key_;
};

// Collects segments, and prints their best classes a batch at a time.
class Scorer {
 public:
  Scorer(Model* model, size_t top)
      : model_(model), top_(std::min(top, model->names().size())), order_(model->names().size()) {}

  // Cuts a video into frames 0 to 4, 5 to 9, ..., and a last, shorter segment.
  void add(const pyseg::records::FrameDecoder& video) {
    const size_t size = static_cast<size_t>(model_->segment_size()), width = video.width();
    frames_of_video_.resize(video.frames() * width);
    video.copy(frames_of_video_.data());
    for (size_t start = 0; start < video.frames(); start += size) {
      const size_t count = std::min(size, video.frames() - start);
      ids_.push_back(std::string(video.id()) + ":" + std::to_string(start));
      num_frames_.push_back(static_cast<int64_t>(count));
      frames_.resize(ids_.size() * size * width);
      std::memcpy(&frames_[(ids_.size() - 1) * size * width], &frames_of_video_[start * width],
                  count * width);
      if (ids_.size() == kBatch) flush();
    }
  }

  void flush() {
    if (ids_.empty()) return;
    const auto count = static_cast<int64_t>(ids_.size());
    const at::Tensor scores = (*model_)(
        at::from_blob(frames_.data(), {count, model_->segment_size(), model_->width()}, at::kByte),
        at::from_blob(num_frames_.data(), {count}, at::kLong));
    const auto classes = static_cast<size_t>(scores.size(1));
    if (classes != order_.size()) throw std::runtime_error("the model has other classes");
    const float* row = scores.const_data_ptr<float>();
    for (const std::string& id : ids_) {
      std::iota(order_.begin(), order_.end(), size_t{0});
      std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(top_),
                        order_.end(), [row](size_t a, size_t b) { return row[a] > row[b]; });
      for (size_t i = 0; i < top_; ++i) {
        std::printf("%s\t%.6f\t%s\n", id.c_str(), static_cast<double>(row[order_[i]]),
                    model_->names()[order_[i]].c_str());
      }
      row += classes;
    }
    ids_.clear();
    num_frames_.clear();
    frames_.clear();
  }

 private:
  Model* model_;
  size_t top_;
  std::vector<size_t> order_;  // of classes
  std::vector<uint8_t> frames_of_video_;
  std::vector<std::string> ids_;
  std::vector<int64_t> num_frames_;
  std::vector<uint8_t> frames_;  // 0 past num_frames
};

void score(const std::string& path, const Model& model, Scorer* scorer) {
  struct File {
    int descriptor;
    ~File() {
      if (descriptor >= 0) ::close(descriptor);
    }
  } const file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.descriptor < 0) throw std::runtime_error(std::strerror(errno));
  pyseg::records::Reader reader(std::make_unique<pyseg::records::FileSource>(file.descriptor));
  pyseg::records::FrameDecoder decoder = model.decoder();
  while (reader.decode(0, 1, [&](pyseg::records::Bytes record) { decoder.decode(record); })) {
    scorer->add(decoder);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  size_t top = 3;
  if (words.size() > 2 && words[1] == "--top") {
    top = std::strtoul(words[2].c_str(), nullptr, 10);
    words.erase(words.begin() + 1, words.begin() + 3);
  }
  if (words.size() < 2) {
    std::fprintf(stderr, "usage: score MODEL.pt2 [--top K] RECORDS ...\n");
    return 2;
  }
  std::string place = words[0];
  try {
    Model model(words[0]);
    Scorer scorer(&model, top);
    for (size_t i = 1; i < words.size(); ++i) {
      place = words[i];
      score(place, model, &scorer);
    }
    scorer.flush();
  } catch (const std::exception& error) {
    const std::string text = error.what();  // torch's goes on with where it was raised
    std::fprintf(stderr, "score: %s: %s\n", place.c_str(), text.substr(0, text.find('\n')).c_str());
    return 1;
  }
}
