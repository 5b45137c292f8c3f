// Two runs in one folder: the second waits for the first, and says so when it waited in vain.
#include "trainer/run_lock.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <memory>
#include <thread>

#include "kernels/error.h"

namespace lapidary {
namespace {

class RunLockTest : public testing::Test {
 protected:
  RunLockTest() { std::filesystem::create_directories(folder_); }
  ~RunLockTest() override { std::filesystem::remove_all(folder_); }
  std::string folder_ =
      std::filesystem::temp_directory_path() / ("lapidary-lock-" + std::to_string(getpid()));
};

TEST_F(RunLockTest, ASecondRunIsRefusedWithTheFoldersName) {
  const RunLock first(folder_);
  try {
    const RunLock second(folder_, std::chrono::seconds(0));
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::peer_lost);
    EXPECT_NE(std::string(e.what()).find(folder_), std::string::npos) << e.what();
  }
}

TEST_F(RunLockTest, ASecondRunStartsWhenTheFirstHasEnded) {
  auto first = std::make_unique<RunLock>(folder_);
  auto second =
      std::async(std::launch::async, [&] { const RunLock lock(folder_, std::chrono::seconds(10)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  first.reset();
  EXPECT_NO_THROW(second.get());
}

TEST_F(RunLockTest, NamesAFolderThatIsNotThere) {
  EXPECT_THROW(RunLock("/no/such/folder"), Error);
}

}  // namespace
}  // namespace lapidary
