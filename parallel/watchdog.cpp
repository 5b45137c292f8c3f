#include "parallel/watchdog.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/check.h"
#include "kernels/stopwatch.h"
#include "parallel/mpi_check.h"

namespace lapidary {
namespace {

constexpr int kBeatTag = 1;
constexpr Watchdog::Duration kLongestBeat{2000};

/// How far a rank has come, as one message.
struct Place {
  std::int64_t count = 0;  ///< calls of at() and calm()
  std::int64_t step = 0;
  std::int64_t calm = 1;  ///< its work may take any time
  std::int64_t left = 0;  ///< the watch ended there: nothing more is heard
  std::array<char, 64> doing{};
};

/// A rank's place, and since when it is there by this rank's clock.
struct Sight {
  Place place;
  Clock::time_point since = Clock::now(), heard = since;

  void see(const Place& now) {
    heard = Clock::now();
    if (now.count != place.count) since = heard;
    place = now;
  }
};

struct Outbox {
  Place message;
  MPI_Request request = MPI_REQUEST_NULL;
};

}  // namespace

struct Watchdog::State {
  MPI_Comm group = MPI_COMM_NULL;
  int rank = 0, size = 1;
  Duration patience{};

  std::mutex mutex;
  std::condition_variable changed;
  Place mine;        // guarded by the mutex
  bool end = false;  // guarded by the mutex

  Sight self, before;  // of the watching thread, as is the outbox
  std::unique_ptr<Outbox> outbox = std::make_unique<Outbox>();
  std::thread thread;

  State(MPI_Comm communicator, Duration time);
  ~State();
  void move(std::int64_t step, const char* doing, bool is_calm);
  void watch();
  void tell(const Place& place);
  void abandon_outbox();
  void listen();
  void judge() const;
  [[noreturn]] void end_job(const std::string& what) const;
  int previous() const { return (rank + size - 1) % size; }
};

Watchdog::State::State(MPI_Comm communicator, Duration time) : patience(time) {
  if (communicator != MPI_COMM_NULL) {
    mpi_check(MPI_Comm_dup(communicator, &group), "duplication", "watchdog");
    MPI_Comm_set_errhandler(group, MPI_ERRORS_RETURN);
    MPI_Comm_rank(group, &rank);
    MPI_Comm_size(group, &size);
  }
  thread = std::thread([this] { watch(); });
}

Watchdog::State::~State() {
  {
    const std::lock_guard lock(mutex);
    end = true;
    mine.left = 1;
  }
  changed.notify_one();
  thread.join();
  // The communicator and a message under way stay until the process ends: freeing them would wait for the
  // others.
}

void Watchdog::State::move(std::int64_t step, const char* doing, bool is_calm) {
  const std::lock_guard lock(mutex);
  ++mine.count;
  mine.step = step;
  mine.calm = is_calm ? 1 : 0;
  std::snprintf(mine.doing.data(), mine.doing.size(), "%s", doing);
}

void Watchdog::State::watch() {
  const Duration beat = std::min(patience / 8, kLongestBeat);
  std::unique_lock lock(mutex);
  for (;;) {
    const Place now = mine;
    const bool last = end;
    lock.unlock();
    self.see(now);
    if (size > 1) {
      tell(now);
      listen();
    }
    if (last) return;
    judge();
    lock.lock();
    if (!end) changed.wait_for(lock, beat);
  }
}

/// One message at a time: where the last has not left yet, the next beat tells what is new.
void Watchdog::State::tell(const Place& place) {
  int done = 1;
  if (outbox->request != MPI_REQUEST_NULL) MPI_Test(&outbox->request, &done, MPI_STATUS_IGNORE);
  if (done == 0 && place.left == 0) return;
  if (done == 0) abandon_outbox();
  outbox->message = place;
  MPI_Isend(&outbox->message, sizeof(Place), MPI_BYTE, (rank + 1) % size, kBeatTag, group, &outbox->request);
  if (place.left != 0) MPI_Test(&outbox->request, &done, MPI_STATUS_IGNORE);
  if (done == 0) abandon_outbox();
}

/// MPI may read the message until the process ends.
void Watchdog::State::abandon_outbox() {
  static std::vector<std::unique_ptr<Outbox>>* const kept = new std::vector<std::unique_ptr<Outbox>>;
  kept->push_back(std::move(outbox));
  outbox = std::make_unique<Outbox>();
}

void Watchdog::State::listen() {
  for (int there = 1; there != 0;) {
    if (MPI_Iprobe(previous(), kBeatTag, group, &there, MPI_STATUS_IGNORE) != MPI_SUCCESS || there == 0)
      return;
    Place place;
    if (MPI_Recv(&place, sizeof place, MPI_BYTE, previous(), kBeatTag, group, MPI_STATUS_IGNORE) !=
        MPI_SUCCESS)
      return;
    before.see(place);
  }
}

void Watchdog::State::judge() const {
  const auto late = [](Clock::time_point since, Duration limit) { return Clock::now() - since > limit; };
  const auto where = [](const Place& p) { return fmt::format("step {}, {}", p.step, p.doing.data()); };
  if (size > 1 && before.place.left == 0) {
    if (late(before.heard, patience))
      end_job(fmt::format(
          "rank {} gave no sign of life for {:.0f} s: it was stopped, or its host is gone; last seen: {}",
          previous(), seconds_since(before.heard), where(before.place)));
    // This rank waits as long: it may just have left a place where all were for long.
    const bool behind = before.place.count < self.place.count && before.place.calm == 0;
    if (behind && late(before.since, patience) && late(self.since, patience))
      end_job(fmt::format("rank {} hangs, for {:.0f} s so far: {}; rank {} waits: {}", previous(),
                          seconds_since(before.since), where(before.place), rank, where(self.place)));
  }
  const bool together = size == 1 || before.place.count == self.place.count;
  if (rank == 0 && together && self.place.calm == 0 && late(self.since, patience * 3 / 2))
    end_job(fmt::format("no rank goes on, for {:.0f} s so far: {}", seconds_since(self.since),
                        where(self.place)));
}

void Watchdog::State::end_job(const std::string& what) const {
  std::fflush(stdout);
  fmt::print(stderr, "{} (run.patience)\n", what);
  std::fflush(stderr);
  const int code = static_cast<int>(ExitCode::peer_lost);
  if (group != MPI_COMM_NULL) MPI_Abort(MPI_COMM_WORLD, code);
  std::_Exit(code);
}

Watchdog::Watchdog(MPI_Comm group, Duration patience) {
  if (patience > Duration{0}) state_ = std::make_unique<State>(group, patience);
}

Watchdog::~Watchdog() = default;

void Watchdog::at(std::int64_t step, const char* doing) {
  if (state_) state_->move(step, doing, false);
}

void Watchdog::calm(std::int64_t step, const char* doing) {
  if (state_) state_->move(step, doing, true);
}

}  // namespace lapidary
