// Functions as a Python module, without Python's headers, which take longer to compile than most
// kernels: a call's arguments and its result are values, which runtime/python.cpp turns from and
// into Python's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

extern "C" struct _object;  // PyObject

namespace simt {

/// A NumPy array that a call was given, valid during the call.
struct Array {
  void* memory = nullptr;
  std::vector<std::int64_t> sizes;
  std::int64_t item = 0;  // bytes of an element
  bool contiguous = true, writeable = true;

  std::int64_t shape(std::size_t axis) const { return sizes.at(axis); }
  std::int64_t ndim() const { return static_cast<std::int64_t>(sizes.size()); }
  std::int64_t itemsize() const { return item; }
  std::int64_t nbytes() const { return size() * item; }
  std::int64_t size() const {
    std::int64_t count = 1;
    for (const std::int64_t length : sizes) {
      count *= length;
    }
    return count;
  }
  const void* data() const { return memory; }
  void* mutable_data() const {
    return writeable ? memory : throw std::invalid_argument("an array is read-only");
  }
};

struct Value {
  enum class Kind { kNone, kInteger, kNumber, kText, kArray, kSequence };

  Kind kind = Kind::kNone;
  std::int64_t integer = 0;
  double number = 0;
  std::string text;
  Array array;
  std::vector<Value> items;

  const Value& as(Kind wanted, const char* name) const {
    return kind == wanted ? *this
                          : throw std::invalid_argument(std::string("an argument must be ") + name);
  }
};

/// from: a value as a T. Where functions return a T, also to: a T as a value.
template <typename T>
struct Convert {
  static_assert(std::is_arithmetic_v<T>, "no conversion for this type");

  static T from(const Value& value) {
    if constexpr (std::is_floating_point_v<T>) {
      if (value.kind == Value::Kind::kNumber) {
        return static_cast<T>(value.number);
      }
    }
    const std::int64_t whole = value.as(Value::Kind::kInteger, "a number of its kind").integer;
    const T result = static_cast<T>(whole);
    if (static_cast<std::int64_t>(result) != whole || (std::is_unsigned_v<T> && whole < 0)) {
      throw std::invalid_argument("out of range: " + std::to_string(whole));
    }
    return result;
  }
  static Value to(T number) {
    static_assert(std::is_integral_v<T>);
    Value value;
    value.kind = Value::Kind::kInteger;
    value.integer = static_cast<std::int64_t>(number);
    return value;
  }
};

template <>
struct Convert<std::string> {
  static const std::string& from(const Value& value) {
    return value.as(Value::Kind::kText, "a string").text;
  }
};

template <>
struct Convert<Array> {
  static const Array& from(const Value& value) {
    return value.as(Value::Kind::kArray, "an array").array;
  }
};

inline const std::vector<Value>& items_of(const Value& value) {
  return value.as(Value::Kind::kSequence, "a sequence").items;
}
inline const std::vector<Value>& items_of(const Value& value, std::size_t count) {
  const std::vector<Value>& items = items_of(value);
  return items.size() == count ? items
                               : throw std::invalid_argument("a sequence must have " +
                                                             std::to_string(count) + " items");
}

template <typename T>
struct Convert<std::vector<T>> {
  static std::vector<T> from(const Value& value) {
    std::vector<T> result;
    for (const Value& item : items_of(value)) {
      result.push_back(Convert<T>::from(item));
    }
    return result;
  }
};

template <typename T, std::size_t kCount>
struct Convert<std::array<T, kCount>> {
  static std::array<T, kCount> from(const Value& value) {
    std::array<T, kCount> result;
    for (std::size_t i = 0; i < kCount; ++i) {
      result[i] = Convert<T>::from(items_of(value, kCount)[i]);
    }
    return result;
  }
  static Value to(const std::array<T, kCount>& array) {
    Value value;
    value.kind = Value::Kind::kSequence;
    for (const T& item : array) {
      value.items.push_back(Convert<T>::to(item));
    }
    return value;
  }
};

template <typename... Types>
struct Convert<std::tuple<Types...>> {
  static std::tuple<Types...> from(const Value& value) {
    return each(items_of(value, sizeof...(Types)), std::index_sequence_for<Types...>{});
  }
  static Value to(const std::tuple<Types...>& tuple) {
    Value value;
    value.kind = Value::Kind::kSequence;
    std::apply([&](const Types&... item) { value.items = {Convert<Types>::to(item)...}; }, tuple);
    return value;
  }

 private:
  template <std::size_t... kAt>
  static std::tuple<Types...> each(const std::vector<Value>& items, std::index_sequence<kAt...>) {
    return {Convert<Types>::from(items[kAt])...};
  }
};

using Arguments = std::vector<Value>;

/// The functions of a module.
class Bindings {
 public:
  explicit Bindings(_object* module) : module_(module) {}

  template <typename Callable>
  void def(const char* name, Callable callable) {
    add(name, over_values(std::function(std::move(callable))));
  }

 private:
  using Function = std::function<Value(const Arguments&)>;

  template <typename Result, typename... Types>
  static Function over_values(std::function<Result(Types...)> function) {
    return [function](const Arguments& given) {
      return call(function, given, std::index_sequence_for<Types...>{});
    };
  }
  template <typename Result, typename... Types, std::size_t... kAt>
  static Value call(const std::function<Result(Types...)>& function, const Arguments& given,
                    std::index_sequence<kAt...>) {
    if (given.size() != sizeof...(Types)) {
      throw std::invalid_argument("takes " + std::to_string(sizeof...(Types)) +
                                  " arguments, got " + std::to_string(given.size()));
    }
    if constexpr (std::is_void_v<Result>) {
      function(Convert<std::decay_t<Types>>::from(given[kAt])...);
      return {};
    } else {
      return Convert<Result>::to(function(Convert<std::decay_t<Types>>::from(given[kAt])...));
    }
  }
  void add(const char* name, Function function);

  _object* module_;
};

/// A module with what `define` defines, and set_schedule(order, seed, workers) and poison_byte(),
/// which tests/simt/harness.py expects of every module.
_object* make_module(const char* name, void (*define)(Bindings&));

}  // namespace simt

/// SIMT_MODULE(name, m) { m.def("function", &function); ... }
#define SIMT_MODULE(name, module)                                                   \
  static void define_functions(simt::Bindings& module);                             \
  extern "C" __attribute__((visibility("default"))) _object* PyInit_##name() {      \
    return simt::make_module(#name, &define_functions);                             \
  }                                                                                 \
  static void define_functions(simt::Bindings& module)
