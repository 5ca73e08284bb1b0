// What module.cpp needs of CPython's limited API, by which one library serves every version from
// 3.10 on: references that count themselves, exceptions, and types that hold C++ objects.
//
// The limited API of 3.10 has no buffers, and NumPy's C API is none of it: arrays are made by
// calling `numpy.ndarray` on memory of Python or, by the array interface, on memory of the reader.
#pragma once

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "reader.h"

namespace pyseg::records {

// Python's error indicator has the exception.
struct Raised {};

template <typename T>
T* checked(T* result) {
  if (!result) throw Raised();
  return result;
}

[[noreturn]] inline void raise(PyObject* kind, const std::string& text) {
  PyErr_SetString(kind, text.c_str());
  throw Raised();
}

// An owned reference. `Object(call())` throws if the call has failed.
class Object {
 public:
  explicit Object(PyObject* owned) : object_(checked(owned)) {}
  Object(Object&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Object& operator=(Object&&) = delete;
  ~Object() { Py_XDECREF(object_); }

  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }

 private:
  PyObject* object_;
};

inline Object borrowed(PyObject* object) { return Object(Py_NewRef(checked(object))); }
inline Object text(std::string_view utf8) {
  return Object(PyUnicode_FromStringAndSize(utf8.data(), static_cast<Py_ssize_t>(utf8.size())));
}
inline Object bytes(std::string_view data) {
  return Object(PyBytes_FromStringAndSize(data.data(), static_cast<Py_ssize_t>(data.size())));
}
inline Object number(uint64_t value) { return Object(PyLong_FromUnsignedLongLong(value)); }

template <typename... Items>
Object tuple(const Items&... items) {
  return Object(PyTuple_Pack(sizeof...(items), items.get()...));
}

template <typename... Arguments>
Object call(const Object& callable, const Arguments&... arguments) {
  return Object(PyObject_CallFunctionObjArgs(callable.get(), arguments.get()..., nullptr));
}

inline uint64_t as_unsigned(PyObject* object) {
  const uint64_t value = PyLong_AsUnsignedLongLong(object);
  if (value == UINT64_MAX && PyErr_Occurred()) throw Raised();
  return value;
}

inline std::string as_string(PyObject* object) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(object, &data, &size) < 0) throw Raised();
  return {data, static_cast<size_t>(size)};
}

// Lets other threads of Python run.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  Released(const Released&) = delete;
  ~Released() { PyEval_RestoreThread(state_); }

 private:
  PyThreadState* state_;
};

class Held {
 public:
  Held() : state_(PyGILState_Ensure()) {}
  Held(const Held&) = delete;
  ~Held() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

inline PyObject* fault_type = nullptr;  // pyseg._records.Fault

// Calls `body`, which returns an Object, for a function that returns to Python.
template <typename Body>
PyObject* guarded(const Body& body) noexcept {
  try {
    return body().release();
  } catch (const Raised&) {
  } catch (const Fault& found) {
    const auto record = static_cast<unsigned long long>(found.record);
    const auto offset = static_cast<unsigned long long>(found.offset);
    PyObject* arguments =
        Py_BuildValue("(sKKO)", found.what(), record, offset, found.fatal ? Py_True : Py_False);
    if (arguments) PyErr_SetObject(fault_type, arguments);
    Py_XDECREF(arguments);
  } catch (const std::system_error& found) {
    PyObject* arguments =
        Py_BuildValue("(is)", found.code().value(), found.code().message().c_str());
    if (arguments) PyErr_SetObject(PyExc_OSError, arguments);
    Py_XDECREF(arguments);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& found) {
    PyErr_SetString(PyExc_RuntimeError, found.what());
  }
  return nullptr;
}

// An instance of a type for T.
template <typename T>
struct Instance {
  PyObject head;
  T* value;
};

template <typename T>
inline PyTypeObject* type_of = nullptr;

// The C++ object in `object`, which is of the type for T.
template <typename T>
T& in(PyObject* object) {
  return *reinterpret_cast<Instance<T>*>(object)->value;
}

template <typename T>
Object wrap(std::unique_ptr<T> value, PyTypeObject* type = type_of<T>) {
  Object made(PyType_GenericAlloc(type, 0));
  reinterpret_cast<Instance<T>*>(made.get())->value = value.release();
  return made;
}

template <typename T>
void destroy(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  delete reinterpret_cast<Instance<T>*>(object)->value;
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(object);
  Py_DECREF(type);
}

// Makes the type for T. Without Py_tp_new among `slots` Python cannot make instances.
template <typename T>
Object make_type(const char* name, std::vector<PyType_Slot> slots) {
  const bool creatable = slots[0].slot == Py_tp_new;
  slots.push_back({Py_tp_dealloc, reinterpret_cast<void*>(&destroy<T>)});
  slots.push_back({0, nullptr});
  unsigned int flags = Py_TPFLAGS_DEFAULT;
  if (!creatable) flags |= Py_TPFLAGS_DISALLOW_INSTANTIATION;
  PyType_Spec spec{name, sizeof(Instance<T>), 0, flags, slots.data()};
  Object type(PyType_FromSpec(&spec));
  type_of<T> = reinterpret_cast<PyTypeObject*>(Py_NewRef(type.get()));
  return type;
}

// What is used of NumPy.
struct NumPy {
  Object module{PyImport_ImportModule("numpy")};
  Object ndarray{PyObject_GetAttrString(module.get(), "ndarray")};
  Object asarray{PyObject_GetAttrString(module.get(), "asarray")};
  Object empty{PyObject_GetAttrString(module.get(), "empty")};
  Object frombuffer{PyObject_GetAttrString(module.get(), "frombuffer")};
  Object dtype{PyObject_GetAttrString(module.get(), "dtype")};
  Object uint8{call(dtype, text("uint8"))};
  Object int64{call(dtype, text("int64"))};
  Object float32{call(dtype, text("float32"))};
};
inline const NumPy* numpy = nullptr;  // never destroyed, as Python ends before static objects

template <typename Number>
const Object& dtype() {
  if constexpr (std::is_same_v<Number, uint8_t>) return numpy->uint8;
  if constexpr (std::is_same_v<Number, int64_t>) return numpy->int64;
  if constexpr (std::is_same_v<Number, float>) return numpy->float32;
}

// PyArrayInterface of NumPy's array interface, by which arrays and memory are exchanged
// (https://numpy.org/doc/stable/reference/arrays.interface.html).
struct ArrayInterface {
  static constexpr int kFlags = 0x1 | 0x100 | 0x200 | 0x400;  // C order, aligned, native, writable

  int two;  // the version
  int dimensions;
  char kind;
  int item_size;
  int flags;
  Py_ssize_t* shape;
  Py_ssize_t* strides;
  void* data;
  PyObject* description;
};

// The memory of an array.
inline void* address(const Object& array) {
  const Object capsule(PyObject_GetAttrString(array.get(), "__array_struct__"));
  return static_cast<ArrayInterface*>(checked(PyCapsule_GetPointer(capsule.get(), nullptr)))->data;
}

// `size` bytes, uninitialised if `data` is null, in a bytearray: arrays of it can be written to.
inline Object memory(const void* data, size_t size) {
  if (size > PTRDIFF_MAX) throw std::bad_alloc();
  const auto* from = static_cast<const char*>(data);
  return Object(PyByteArray_FromStringAndSize(from, static_cast<Py_ssize_t>(size)));
}

// An array of `shape` in `memory`, a bytearray.
template <typename Number, typename... Sizes>
Object array_in(const Object& memory, Sizes... shape) {
  return call(numpy->ndarray, tuple(number(shape)...), dtype<Number>(), memory);
}

template <typename Number>
Object array(const std::vector<Number>& values) {
  return array_in<Number>(memory(values.data(), values.size() * sizeof(Number)), values.size());
}

}  // namespace pyseg::records
