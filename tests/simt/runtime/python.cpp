#include "simt/python.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "simt/scheduler.h"

namespace py = pybind11;

namespace simt {
namespace {

Value to_value(py::handle from) {
  Value value;
  if (py::isinstance<py::array>(from)) {
    auto array = py::reinterpret_borrow<py::array>(from);
    value.kind = Value::Kind::kArray;
    value.array.memory = const_cast<void*>(array.data());
    value.array.sizes.assign(array.shape(), array.shape() + array.ndim());
    value.array.item = array.itemsize();
    value.array.contiguous = (array.flags() & py::array::c_style) != 0;
    value.array.writeable = array.writeable();
  } else if (py::isinstance<py::str>(from)) {
    value.kind = Value::Kind::kText;
    value.text = from.cast<std::string>();
  } else if (PyIndex_Check(from.ptr())) {
    value.kind = Value::Kind::kInteger;
    value.integer = from.cast<std::int64_t>();
  } else if (PyNumber_Check(from.ptr())) {
    value.kind = Value::Kind::kNumber;
    value.number = from.cast<double>();
  } else {
    value.kind = Value::Kind::kSequence;
    for (py::handle item : from.cast<py::sequence>()) {
      value.items.push_back(to_value(item));
    }
  }
  return value;
}

py::object to_object(const Value& value) {
  if (value.kind == Value::Kind::kInteger) {
    return py::int_(value.integer);
  }
  if (value.kind == Value::Kind::kSequence) {
    py::tuple items(value.items.size());
    for (std::size_t i = 0; i < value.items.size(); ++i) {
      items[i] = to_object(value.items[i]);
    }
    return items;
  }
  return py::none();
}

void set_schedule(const std::string& order, std::uint64_t seed, int workers) {
  Schedule next{Order::kLane, seed, workers};
  if (order == "reversed") {
    next.order = Order::kReversed;
  } else if (order == "shuffled") {
    next.order = Order::kShuffled;
  } else if (order != "lane") {
    throw std::invalid_argument("order must be lane, reversed or shuffled, got " + order);
  }
  schedule() = next;
}

}  // namespace

void Bindings::add(const char* name, Function function) {
  py::handle(module_).cast<py::module_>().def(name, [function](const py::args& args) {
    Arguments given;
    for (py::handle argument : args) {
      given.push_back(to_value(argument));
    }
    return to_object(function(given));
  });
}

PyObject* make_module(const char* name, void (*define)(Bindings&)) {
  static PyModuleDef definition;
  py::detail::get_internals();
  const auto module = py::module_::create_extension_module(name, nullptr, &definition);
  Bindings bindings(module.ptr());
  bindings.def("set_schedule", &set_schedule);
  bindings.def("poison_byte", &poison_byte);
  define(bindings);
  return module.ptr();
}

}  // namespace simt
