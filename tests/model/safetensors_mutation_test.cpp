// Damaged headers by the thousand: each gives an Error or a table whose every byte range lies in the file,
// and none makes the reader allocate much more than the file is long.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <random>

#include "model/safetensors.h"
#include "tests/model/mutate.h"
#include "tests/model/safetensors_fixture.h"

namespace {
std::atomic<std::size_t> largest_allocation{0};
}

// Not inlined: GCC would take the pair for a mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  std::size_t seen = largest_allocation.load();
  while (bytes > seen && !largest_allocation.compare_exchange_weak(seen, bytes)) {
  }
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace lapidary {
namespace {

std::string header_of(int tensors) {
  std::string header = R"({"__metadata__":{"format":"pt"})";
  const char* const types[] = {"F32", "BF16", "I64", "U8"};
  const int sizes[] = {4, 2, 8, 1};
  int at = 0;
  for (int i = 0; i < tensors; ++i) {
    const int begin = at, rows = 1 + i % 3, columns = 1 + i % 4;
    at += rows * columns * sizes[i % 4];
    header += ",\"layers." + std::to_string(i) + R"(.weight":{"dtype":")" + types[i % 4] + "\",\"shape\":[" +
              std::to_string(rows) + "," + std::to_string(columns) + "],\"data_offsets\":[" +
              std::to_string(begin) + "," + std::to_string(at) + "]}";
  }
  header += "}";
  return safetensors_bytes(header, std::string(static_cast<std::size_t>(at), 'x'));
}

TEST(SafetensorsMutation, ErrorOrSoundNeverMore) {
  const TemporaryFolder folder;
  const std::string path = folder / "m.safetensors";
  std::mt19937 random(20240607);
  int refused = 0, accepted = 0;
  for (int i = 0; i < 10000; ++i) {
    const std::string bytes = mutate(header_of(1 + i % 40), random);
    write_raw(path, bytes);
    largest_allocation = 0;
    try {
      const Safetensors file(path);
      ++accepted;
      std::int64_t end =
          file.tensors().empty() ? static_cast<std::int64_t>(bytes.size()) : file.tensors()[0].offset;
      for (const StoredTensor& tensor : file.tensors()) {
        ASSERT_EQ(tensor.offset, end);
        end += tensor.bytes();
      }
      ASSERT_EQ(end, static_cast<std::int64_t>(bytes.size()));
    } catch (const Error& e) {
      ++refused;
      ASSERT_TRUE(contains(e.what(), path)) << e.what();
    }
    ASSERT_LT(largest_allocation, 64 * bytes.size() + 65536) << "from a file of " << bytes.size() << " bytes";
  }
  EXPECT_GT(refused, 5000);
  EXPECT_GT(accepted, 100);  // changes inside a name or the data are none of the reader's business
}

TEST(SafetensorsMutation, IndexErrorOrSound) {
  const TemporaryFolder folder;
  write_raw(folder / "m.safetensors",
            safetensors_bytes(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"));
  const std::string good = R"({"metadata":{"total_size":1},"weight_map":{"a":"m.safetensors"}})";
  std::mt19937 random(7);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    const std::string bytes = mutate(good, random);
    write_raw(folder / "model.safetensors.index.json", bytes);
    largest_allocation = 0;
    try {
      const Safetensors model(folder.path());
      ASSERT_EQ(model.tensors().size(), 1u);
    } catch (const Error&) {
      ++refused;
    }
    ASSERT_LT(largest_allocation, 64 * bytes.size() + 65536);
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace lapidary
