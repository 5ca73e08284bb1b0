// pyseg._records, the native reader. pyseg/data/records/reference.py has the same interface and
// documents it.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "crc32c.h"
#include "decode.h"
#include "pool.h"
#include "reader.h"

namespace py = pybind11;

namespace pyseg::records {
namespace {

// A Python object with readinto(memoryview).
class PythonSource final : public Source {
 public:
  explicit PythonSource(py::object readinto) : readinto_(std::move(readinto)) {}

  size_t read(uint8_t* to, size_t count) override {
    const py::gil_scoped_acquire held;
    const py::object got =
        readinto_(py::memoryview::from_memory(to, static_cast<py::ssize_t>(count)));
    return got.is_none() ? 0 : got.cast<size_t>();
  }

 private:
  py::object readinto_;
};

std::unique_ptr<Source> open_source(const py::object& source) {
  if (py::hasattr(source, "fileno"))
    return std::make_unique<FileSource>(source.attr("fileno")().cast<int>());
  return std::make_unique<PythonSource>(source.attr("readinto"));
}

class PythonReader {
 public:
  PythonReader(py::object source, int64_t size, uint64_t largest)
      : source_(std::move(source)), reader_(open_source(source_), size, largest) {}

  Reader& operator*() { return reader_; }
  Reader* operator->() { return &reader_; }

 private:
  py::object source_;  // kept open
  Reader reader_;
};

template <typename Number>
py::array_t<Number> array(const std::vector<Number>& values) {
  return py::array_t<Number>(static_cast<py::ssize_t>(values.size()), values.data());
}

// An uninitialised array of (rows, width) bytes.
py::array_t<uint8_t> new_frames(size_t rows, size_t width) {
  static Pool* pool = new Pool;  // never destroyed: arrays may outlive the module
  struct Block {
    void* memory;
    size_t size;
  };
  const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(rows),
                                       static_cast<py::ssize_t>(width)};
  const size_t size = rows * width;
  if (size < Pool::kSmallest) return py::array_t<uint8_t>(shape);
  auto block = std::make_unique<Block>(Block{pool->take(size), size});
  void* memory = block->memory;
  const py::capsule owner(block.release(), [](void* dropped) {
    const std::unique_ptr<Block> mine(static_cast<Block*>(dropped));
    pool->give(mine->memory, mine->size);
  });
  return py::array_t<uint8_t>(shape, static_cast<const uint8_t*>(memory), owner);
}

py::object next_record(PythonReader& reader, uint64_t index, uint64_t count) {
  Bytes record;
  bool found;
  {
    const py::gil_scoped_release released;
    found = reader->decode(index, count, [&](Bytes payload) { record = payload; });
  }
  if (!found) return py::none();
  return py::bytes(record.text().data(), record.size());
}

py::object next_frames(PythonReader& reader, FrameDecoder& decoder, uint64_t index,
                       uint64_t count) {
  bool found;
  {
    const py::gil_scoped_release released;
    found = reader->decode(index, count, [&](Bytes payload) { decoder.decode(payload); });
  }
  if (!found) return py::none();
  py::array_t<uint8_t> frames = new_frames(decoder.frames(), decoder.width());
  {
    uint8_t* to = frames.mutable_data();
    const py::gil_scoped_release released;
    decoder.copy(to);
  }
  py::object ratings = py::none();
  if (decoder.rated()) {
    const Ratings& r = decoder.ratings();
    ratings = py::make_tuple(array(r.starts), array(r.classes), array(r.scores), r.dropped, r.cut,
                             r.duplicates, array(r.misfit));
  }
  py::tuple extra(decoder.extra().size());
  for (size_t i = 0; i < extra.size(); ++i) {
    const Scalar& scalar = decoder.extra()[i];
    if (scalar.kind == kBytes) {
      extra[i] = py::bytes(scalar.text);
    } else if (scalar.kind == kInt64) {
      extra[i] = py::int_(scalar.integer);
    } else {
      extra[i] = py::float_(scalar.real);
    }
  }
  return py::make_tuple(py::str(decoder.id().data(), decoder.id().size()), frames,
                        array(decoder.labels()), ratings, extra, decoder.unlabelled());
}

// Decoded video-level records, column by column.
class VideoBlock {
 public:
  VideoBlock(std::shared_ptr<VideoDecoder> decoder, size_t capacity)
      : decoder_(std::move(decoder)),
        capacity_(capacity),
        features_(
            {static_cast<py::ssize_t>(capacity), static_cast<py::ssize_t>(decoder_->width())}),
        to_(features_.mutable_data()) {}

  size_t size() const { return label_offsets_.size() - 1; }

  bool fill(Reader& reader, uint64_t index, uint64_t count) {
    const py::gil_scoped_release released;
    while (size() < capacity_) {
      if (!reader.decode(index, count, [&](Bytes payload) { append(payload); })) return false;
    }
    return true;
  }

  // Returns the decoded columns. The block is empty afterwards: its memory moves to the features.
  py::tuple columns() {
    py::list ids(size());
    size_t start = 0;
    for (size_t i = 0; i < size(); ++i) {
      ids[i] = py::str(ids_.data() + start, id_ends_[i] - start);
      start = id_ends_[i];
    }
    if (size() < capacity_) {
      features_.resize(
          {static_cast<py::ssize_t>(size()), static_cast<py::ssize_t>(decoder_->width())}, false);
    }
    return py::make_tuple(ids, std::move(features_), array(label_offsets_), array(labels_));
  }

  size_t unlabelled() const { return unlabelled_; }

 private:
  void append(Bytes record) {
    decoder_->decode(record, to_ + size() * decoder_->width());
    ids_ += decoder_->id();
    id_ends_.push_back(ids_.size());
    labels_.insert(labels_.end(), decoder_->labels().begin(), decoder_->labels().end());
    label_offsets_.push_back(static_cast<int64_t>(labels_.size()));
    unlabelled_ += decoder_->unlabelled();
  }

  std::shared_ptr<VideoDecoder> decoder_;
  size_t capacity_;
  py::array_t<float> features_;
  float* to_;
  std::string ids_;  // concatenated
  std::vector<size_t> id_ends_;
  std::vector<int64_t> labels_;
  std::vector<int64_t> label_offsets_{0};
  size_t unlabelled_ = 0;
};

uint32_t checksum(const py::buffer& data, uint32_t crc) {
  const py::buffer_info info = data.request();
  if (!PyBuffer_IsContiguous(info.view(), 'C'))
    throw py::type_error("data: expected contiguous bytes");
  const auto* begin = static_cast<const uint8_t*>(info.ptr);
  const auto size = static_cast<size_t>(info.size * info.itemsize);
  const py::gil_scoped_release released;
  return crc32c(begin, size, crc);
}

}  // namespace
}  // namespace pyseg::records

PYBIND11_MODULE(_records, module) {
  using namespace pyseg::records;  // NOLINT

  module.doc() = "Reads TFRecords natively; pyseg.data.records.reference is the same in Python.";

  static PyObject* fault = PyErr_NewException("pyseg._records.Fault", nullptr, nullptr);
  if (!fault) throw py::error_already_set();
  module.add_object("Fault", py::reinterpret_borrow<py::object>(fault));
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Fault& found) {
      PyErr_SetObject(fault,
                      py::make_tuple(found.what(), found.record, found.offset, found.fatal).ptr());
    } catch (const std::system_error& found) {
      PyErr_SetObject(PyExc_OSError,
                      py::make_tuple(found.code().value(), found.code().message()).ptr());
    }
  });

  module.def("crc32c", &checksum, py::arg("data"), py::arg("crc") = 0);
  module.def(
      "crc32c_portable",
      [](const py::bytes& data, uint32_t crc) {
        const auto text = static_cast<std::string_view>(data);
        return crc::extend_portable(crc, reinterpret_cast<const uint8_t*>(text.data()),
                                    text.size());
      },
      py::arg("data"), py::arg("crc") = 0, "crc32c without the processor's instruction.");

  py::class_<FrameDecoder>(module, "FrameDecoder")
      .def(py::init<const Features&, const std::string&, const std::string&, int64_t, size_t,
                    const std::vector<std::string>&>());
  py::class_<VideoBlock>(module, "VideoBlock")
      .def("__len__", &VideoBlock::size)
      .def_property_readonly("unlabelled", &VideoBlock::unlabelled)
      .def("columns", &VideoBlock::columns);
  py::class_<VideoDecoder, std::shared_ptr<VideoDecoder>>(module, "VideoDecoder")
      .def(py::init<const Features&, const std::string&, const std::string&>())
      .def("block", [](std::shared_ptr<VideoDecoder> decoder, size_t capacity) {
        return std::make_unique<VideoBlock>(std::move(decoder), capacity);
      });
  py::class_<PythonReader>(module, "Reader")
      .def(py::init<py::object, int64_t, uint64_t>(), py::arg("source"), py::arg("size") = -1,
           py::arg("largest") = kLargestRecord)
      .def_property_readonly("record", [](PythonReader& reader) { return reader->record(); })
      .def_property_readonly("offset", [](PythonReader& reader) { return reader->offset(); })
      .def("next_record", &next_record)
      .def("next_frames", &next_frames)
      .def("fill", [](PythonReader& reader, VideoBlock& block, uint64_t index, uint64_t count) {
        return block.fill(*reader, index, count);
      });
}
