// pyseg._records, the native reader. pyseg/data/records/reference.py has the same interface and
// documents it.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "crc32c.h"
#include "decode.h"
#include "limited_api.h"
#include "pool.h"
#include "reader.h"

namespace pyseg::records {
namespace {

// A Python object with readinto(memoryview).
class PythonSource final : public Source {
 public:
  explicit PythonSource(Object readinto) : readinto_(std::move(readinto)) {}

  size_t read(uint8_t* to, size_t count) override {
    constexpr int kWritable = 0x200;  // PyBUF_WRITE, which 3.10 does not define here
    const Held held;
    const Object view(PyMemoryView_FromMemory(reinterpret_cast<char*>(to),
                                              static_cast<Py_ssize_t>(count), kWritable));
    const Object got = call(readinto_, view);
    const uint64_t size = got.get() == Py_None ? 0 : as_unsigned(got.get());
    if (size > count) {
      raise(PyExc_ValueError, "readinto: expected at most " + std::to_string(count) +
                                  " bytes, found " + std::to_string(size));
    }
    return size;
  }

 private:
  Object readinto_;
};

std::unique_ptr<Source> open_source(PyObject* source) {
  if (!PyObject_HasAttrString(source, "fileno"))
    return std::make_unique<PythonSource>(Object(PyObject_GetAttrString(source, "readinto")));
  const Object descriptor(PyObject_CallMethod(source, "fileno", nullptr));
  const long number = PyLong_AsLong(descriptor.get());
  if (number == -1 && PyErr_Occurred()) throw Raised();
  return std::make_unique<FileSource>(static_cast<int>(number));
}

class PythonReader {
 public:
  PythonReader(PyObject* source, int64_t size, uint64_t largest)
      : source_(borrowed(source)), reader_(open_source(source), size, largest) {}

  Reader& operator*() { return reader_; }
  Reader* operator->() { return &reader_; }

 private:
  Object source_;  // kept open
  Reader reader_;
};

// A block of the pool, of which NumPy makes an array.
class Block {
 public:
  Block(size_t rows, size_t width)
      : shape_{static_cast<Py_ssize_t>(rows), static_cast<Py_ssize_t>(width)},
        strides_{static_cast<Py_ssize_t>(width), 1},
        memory_(pool().take(rows * width)) {}
  Block(const Block&) = delete;
  ~Block() { pool().give(memory_, static_cast<size_t>(shape_[0] * shape_[1])); }

  void* data() const { return memory_; }
  void* interface() { return &interface_; }

 private:
  static Pool& pool() {
    static Pool* pool = new Pool;  // never destroyed: arrays may outlive the module
    return *pool;
  }

  Py_ssize_t shape_[2];
  Py_ssize_t strides_[2];
  void* memory_;
  ArrayInterface interface_{2,      2,        'u',     1,      ArrayInterface::kFlags,
                            shape_, strides_, memory_, nullptr};
};

PyObject* block_interface(PyObject* self, void*) {
  return PyCapsule_New(in<Block>(self).interface(), nullptr, nullptr);
}

// The frames of `decoder`, (frames, width) bytes.
Object copy_frames(const FrameDecoder& decoder) {
  const size_t rows = decoder.frames();
  const size_t width = decoder.width();
  const auto copy = [&](void* to) {
    const Released released;
    decoder.copy(static_cast<uint8_t*>(to));
  };
  if (rows * width < Pool::kSmallest) {
    const Object small = memory(nullptr, rows * width);
    copy(PyByteArray_AsString(small.get()));
    return array_in<uint8_t>(small, rows, width);
  }
  const Object block = wrap(std::make_unique<Block>(rows, width));
  copy(in<Block>(block.get()).data());
  return call(numpy->asarray, block);
}

Object rating_tuple(const Ratings& r) {
  return tuple(array(r.starts), array(r.classes), array(r.scores), number(r.dropped), number(r.cut),
               number(r.duplicates), array(r.misfit));
}

Object extra_tuple(const std::vector<Scalar>& extra) {
  Object values(PyTuple_New(static_cast<Py_ssize_t>(extra.size())));
  for (size_t i = 0; i < extra.size(); ++i) {
    const Scalar& scalar = extra[i];
    Object value = scalar.kind == kBytes   ? bytes(scalar.text)
                   : scalar.kind == kInt64 ? Object(PyLong_FromLongLong(scalar.integer))
                                           : Object(PyFloat_FromDouble(scalar.real));
    PyTuple_SetItem(values.get(), static_cast<Py_ssize_t>(i), value.release());
  }
  return values;
}

Object none() { return borrowed(Py_None); }

Object boolean(bool value) { return borrowed(value ? Py_True : Py_False); }

Features as_features(PyObject* list) {
  Features features;
  for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
    PyObject* pair = PyList_GetItem(list, i);
    features.emplace_back(as_string(checked(PyTuple_GetItem(pair, 0))),
                          as_unsigned(checked(PyTuple_GetItem(pair, 1))));
  }
  return features;
}

PyObject* new_reader(PyTypeObject* type, PyObject* arguments, PyObject*) {
  return guarded([&] {
    PyObject *source = nullptr, *largest = nullptr;
    long long size = -1;
    if (!PyArg_ParseTuple(arguments, "O|LO", &source, &size, &largest)) throw Raised();
    const uint64_t limit = largest ? as_unsigned(largest) : kLargestRecord;
    return wrap(std::make_unique<PythonReader>(source, size, limit), type);
  });
}

// Parses `(T, index, count)`, or `(index, count)` without a `first`.
struct Shard {
  Shard(PyObject* arguments, PyTypeObject* type, PyObject** first) {
    PyObject *index_object = nullptr, *count_object = nullptr;
    const bool parsed =
        first ? PyArg_ParseTuple(arguments, "O!OO", type, first, &index_object, &count_object)
              : PyArg_ParseTuple(arguments, "OO", &index_object, &count_object);
    if (!parsed) throw Raised();
    index = as_unsigned(index_object);
    count = as_unsigned(count_object);
    if (count == 0) raise(PyExc_ValueError, "count: expected at least 1, found 0");
  }

  uint64_t index;
  uint64_t count;
};

PyObject* next_record(PyObject* self, PyObject* arguments) {
  return guarded([&] {
    const Shard shard(arguments, nullptr, nullptr);
    Bytes record;
    bool found;
    {
      const Released released;
      found = in<PythonReader>(self)->decode(shard.index, shard.count,
                                             [&](Bytes payload) { record = payload; });
    }
    return found ? bytes(record.text()) : none();
  });
}

PyObject* next_frames(PyObject* self, PyObject* arguments) {
  return guarded([&] {
    PyObject* first = nullptr;
    const Shard shard(arguments, type_of<FrameDecoder>, &first);
    auto& decoder = in<FrameDecoder>(first);
    bool found;
    {
      const Released released;
      found = in<PythonReader>(self)->decode(shard.index, shard.count,
                                             [&](Bytes payload) { decoder.decode(payload); });
    }
    if (!found) return none();
    return tuple(text(decoder.id()), copy_frames(decoder), array(decoder.labels()),
                 decoder.rated() ? rating_tuple(decoder.ratings()) : none(),
                 extra_tuple(decoder.extra()), boolean(decoder.unlabelled()));
  });
}

PyObject* reader_record(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(in<PythonReader>(self)->record());
}

PyObject* reader_offset(PyObject* self, void*) {
  return PyLong_FromUnsignedLongLong(in<PythonReader>(self)->offset());
}

PyObject* new_frame_decoder(PyTypeObject* type, PyObject* arguments, PyObject*) {
  return guarded([&] {
    PyObject *features = nullptr, *id = nullptr, *labels = nullptr, *keys = nullptr;
    long long segment_size = 0;
    Py_ssize_t max_frames = 0;
    if (!PyArg_ParseTuple(arguments, "O!SSLnO!", &PyList_Type, &features, &id, &labels,
                          &segment_size, &max_frames, &PyList_Type, &keys))
      throw Raised();
    std::vector<std::string> names;
    for (Py_ssize_t i = 0; i < PyList_Size(keys); ++i)
      names.push_back(as_string(PyList_GetItem(keys, i)));
    return wrap(
        std::make_unique<FrameDecoder>(as_features(features), as_string(id), as_string(labels),
                                       segment_size, static_cast<size_t>(max_frames), names),
        type);
  });
}

// Decoded video-level records, column by column.
class VideoBlock {
 public:
  VideoBlock(PyObject* decoder, size_t capacity)
      : decoder_(borrowed(decoder)),
        width_(in<VideoDecoder>(decoder).width()),
        capacity_(capacity),
        features_(call(numpy->empty, tuple(number(capacity), number(width_)), dtype<float>())),
        to_(static_cast<float*>(address(features_))) {}

  size_t size() const { return label_offsets_.size() - 1; }

  bool fill(Reader& reader, uint64_t index, uint64_t count) {
    const Released released;
    while (size() < capacity_) {
      if (!reader.decode(index, count, [&](Bytes payload) { append(payload); })) return false;
    }
    return true;
  }

  // Returns the decoded columns. The block is full afterwards: its memory is that of the features.
  Object columns() {
    const Object ids(PyList_New(static_cast<Py_ssize_t>(size())));
    size_t start = 0;
    for (size_t i = 0; i < size(); ++i) {
      Object id = text(std::string_view(ids_).substr(start, id_ends_[i] - start));
      PyList_SetItem(ids.get(), static_cast<Py_ssize_t>(i), id.release());
      start = id_ends_[i];
    }
    if (size() < capacity_) {
      const Object resize(PyObject_GetAttrString(features_.get(), "resize"));
      const Object shape(tuple(tuple(number(size()), number(width_))));
      const Object unchecked(Py_BuildValue("{sO}", "refcheck", Py_False));
      const Object done(PyObject_Call(resize.get(), shape.get(), unchecked.get()));
    }
    capacity_ = size();
    return tuple(ids, features_, array(label_offsets_), array(labels_));
  }

  size_t unlabelled() const { return unlabelled_; }

 private:
  void append(Bytes record) {
    auto& decoder = in<VideoDecoder>(decoder_.get());
    decoder.decode(record, to_ + size() * width_);
    ids_ += decoder.id();
    id_ends_.push_back(ids_.size());
    labels_.insert(labels_.end(), decoder.labels().begin(), decoder.labels().end());
    label_offsets_.push_back(static_cast<int64_t>(labels_.size()));
    unlabelled_ += decoder.unlabelled();
  }

  Object decoder_;
  size_t width_;
  size_t capacity_;
  Object features_;
  float* to_;
  std::string ids_;  // concatenated
  std::vector<size_t> id_ends_;
  std::vector<int64_t> labels_;
  std::vector<int64_t> label_offsets_{0};
  size_t unlabelled_ = 0;
};

PyObject* new_video_decoder(PyTypeObject* type, PyObject* arguments, PyObject*) {
  return guarded([&] {
    PyObject *features = nullptr, *id = nullptr, *labels = nullptr;
    if (!PyArg_ParseTuple(arguments, "O!SS", &PyList_Type, &features, &id, &labels)) throw Raised();
    return wrap(
        std::make_unique<VideoDecoder>(as_features(features), as_string(id), as_string(labels)),
        type);
  });
}

PyObject* decoder_block(PyObject* self, PyObject* capacity) {
  return guarded([&] { return wrap(std::make_unique<VideoBlock>(self, as_unsigned(capacity))); });
}

PyObject* reader_fill(PyObject* self, PyObject* arguments) {
  return guarded([&] {
    PyObject* block = nullptr;
    const Shard shard(arguments, type_of<VideoBlock>, &block);
    return boolean(in<VideoBlock>(block).fill(*in<PythonReader>(self), shard.index, shard.count));
  });
}

Py_ssize_t block_length(PyObject* self) {
  return static_cast<Py_ssize_t>(in<VideoBlock>(self).size());
}

PyObject* block_columns(PyObject* self, PyObject*) {
  return guarded([&] { return in<VideoBlock>(self).columns(); });
}

PyObject* block_unlabelled(PyObject* self, void*) {
  return PyLong_FromSize_t(in<VideoBlock>(self).unlabelled());
}

Object checksum(const void* data, Py_ssize_t size, uint32_t crc) {
  {
    const Released released;
    crc = crc32c(static_cast<const uint8_t*>(data), static_cast<size_t>(size), crc);
  }
  return number(crc);
}

PyObject* py_crc32c(PyObject*, PyObject* arguments) {
  return guarded([&] {
    PyObject* data = nullptr;
    unsigned int crc = 0;
    if (!PyArg_ParseTuple(arguments, "O|I", &data, &crc)) throw Raised();
    if (PyBytes_Check(data)) return checksum(PyBytes_AsString(data), PyBytes_Size(data), crc);
    const Object view(PyMemoryView_FromObject(data));
    const Object contiguous(PyObject_GetAttrString(view.get(), "c_contiguous"));
    if (contiguous.get() != Py_True) raise(PyExc_TypeError, "data: expected contiguous bytes");
    const Object array = call(numpy->frombuffer, view, dtype<uint8_t>());
    return checksum(address(array), PyObject_Size(array.get()), crc);
  });
}

PyObject* py_crc32c_portable(PyObject*, PyObject* data) {
  return guarded([&] {
    const std::string text = as_string(data);
    const auto* begin = reinterpret_cast<const uint8_t*>(text.data());
    return number(crc::extend_portable(0, begin, text.size()));
  });
}

PyMethodDef functions[] = {
    {"crc32c", py_crc32c, METH_VARARGS, nullptr},
    {"crc32c_portable", py_crc32c_portable, METH_O, "crc32c without the processor's instruction."},
    {nullptr, nullptr, 0, nullptr},
};
PyMethodDef reader_methods[] = {
    {"next_record", next_record, METH_VARARGS, nullptr},
    {"next_frames", next_frames, METH_VARARGS, nullptr},
    {"fill", reader_fill, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef reader_properties[] = {
    {"record", reader_record, nullptr, nullptr, nullptr},
    {"offset", reader_offset, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyMethodDef decoder_methods[] = {
    {"block", decoder_block, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyMethodDef block_methods[] = {
    {"columns", block_columns, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyGetSetDef block_properties[] = {
    {"unlabelled", block_unlabelled, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyGetSetDef memory_properties[] = {
    {"__array_struct__", block_interface, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};
PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    "pyseg._records",
    "Reads TFRecords natively; pyseg.data.records.reference is the same in Python.",
    -1,
    functions,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
};

template <typename Function>
void* slot(Function* function) {
  return reinterpret_cast<void*>(function);
}

Object make_module() {
  Object module(PyModule_Create(&definition));
  numpy = new NumPy;
  const auto add = [&](const char* name, Object object) {
    if (PyModule_AddObjectRef(module.get(), name, object.get()) < 0) throw Raised();
  };
  fault_type = checked(PyErr_NewException("pyseg._records.Fault", nullptr, nullptr));
  add("Fault", borrowed(fault_type));
  add("Reader",
      make_type<PythonReader>("pyseg._records.Reader", {{Py_tp_new, slot(new_reader)},
                                                        {Py_tp_methods, reader_methods},
                                                        {Py_tp_getset, reader_properties}}));
  add("FrameDecoder", make_type<FrameDecoder>("pyseg._records.FrameDecoder",
                                              {{Py_tp_new, slot(new_frame_decoder)}}));
  add("VideoDecoder",
      make_type<VideoDecoder>("pyseg._records.VideoDecoder", {{Py_tp_new, slot(new_video_decoder)},
                                                              {Py_tp_methods, decoder_methods}}));
  add("VideoBlock",
      make_type<VideoBlock>("pyseg._records.VideoBlock", {{Py_sq_length, slot(block_length)},
                                                          {Py_tp_methods, block_methods},
                                                          {Py_tp_getset, block_properties}}));
  add("Block", make_type<Block>("pyseg._records.Block", {{Py_tp_getset, memory_properties}}));
  return module;
}

}  // namespace
}  // namespace pyseg::records

PyMODINIT_FUNC PyInit__records() {
  return pyseg::records::guarded([] { return pyseg::records::make_module(); });
}
