#include "kernels/arena.h"

#include <algorithm>

#include "kernels/check.h"

namespace lapidary {

namespace {
// Addresses of a plan arena are never dereferenced; they only must not be null and must keep their distance.
std::byte* const kPlanBase = reinterpret_cast<std::byte*>(Arena::kAlignment);
}  // namespace

Arena::Arena(Backend& backend, std::string purpose, std::size_t capacity, Place place)
    : backend_(&backend), purpose_(std::move(purpose)), capacity_(capacity), place_(place), base_(kPlanBase) {
  if (backend.dry() || capacity == 0) return;
  base_ = static_cast<std::byte*>(place == Place::device ? backend.allocate(capacity)
                                                         : backend.allocate_host(capacity));
}

Arena::~Arena() {
  if (backend_->dry() || capacity_ == 0) return;
  place_ == Place::device ? backend_->release(base_) : backend_->release_host(base_);
}

Tensor Arena::allocate(DType dtype, std::initializer_list<std::int64_t> shape) {
  Tensor out(base_ + used_, dtype, shape);
  const std::size_t bytes = (out.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  require(backend_->dry() || bytes <= capacity_ - used_,
          "{} memory: {} needs {} bytes where {} of {} are in use (this is an error in the plan)", purpose_,
          out.describe(), bytes, used_, capacity_);
  used_ += bytes;
  peak_ = std::max(peak_, used_);
  return out;
}

Tensor Arena::allocate_bytes(std::size_t bytes) {
  return allocate(DType::u8, {static_cast<std::int64_t>(bytes)});
}

void Arena::release_to(std::size_t mark) {
  used_ = std::min(used_, mark);
}

}  // namespace lapidary
