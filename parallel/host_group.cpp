#include "parallel/host_group.h"

#include <algorithm>
#include <limits>
#include <set>
#include <thread>
#include <utility>

#include "kernels/check.h"
#include "kernels/stopwatch.h"

namespace lapidary {
namespace {

constexpr std::int64_t kLargestText = std::int64_t{1} << 30;
// How long a rank that ran out of time listens for who else is still there.
constexpr HostGroup::Duration kRollCall{3000};
constexpr int kRollCallTag = 1;

std::string mpi_message(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return fmt::format("MPI error {}", code);
  return {text, static_cast<std::size_t>(length)};
}

MPI_Op op_of(HostGroup::Reduce reduce) {
  switch (reduce) {
    case HostGroup::Reduce::sum:
      return MPI_SUM;
    case HostGroup::Reduce::min:
      return MPI_MIN;
    case HostGroup::Reduce::max:
      return MPI_MAX;
  }
  fail("host group: no such reduction");
}

double reduced(double a, double b, HostGroup::Reduce reduce) {
  switch (reduce) {
    case HostGroup::Reduce::sum:
      return a + b;
    case HostGroup::Reduce::min:
      return std::min(a, b);
    case HostGroup::Reduce::max:
      return std::max(a, b);
  }
  fail("host group: no such reduction");
}

int count_of(std::size_t values, std::string_view what) {
  require(values <= static_cast<std::size_t>(std::numeric_limits<int>::max()), "{}: {} values are too many",
          what, values);
  return static_cast<int>(values);
}

/// Waits a little longer each time: yields for the first millisecond, then sleeps for 20 microseconds up to a
/// millisecond.
class BackOff {
 public:
  void wait() {
    if (!slow()) return std::this_thread::yield();
    std::this_thread::sleep_for(pause_);
    pause_ = std::min(pause_ * 2, std::chrono::microseconds(1000));
  }
  // By the clock: on a busy machine a single yield may take many milliseconds.
  bool slow() const { return Clock::now() - begun_ > std::chrono::milliseconds(1); }

 private:
  Clock::time_point begun_ = Clock::now();
  std::chrono::microseconds pause_{20};
};

}  // namespace

struct HostGroup::State {
  int rank = 0, size = 1;
  MPI_Comm operations = MPI_COMM_NULL;
  MPI_Comm roll_call = MPI_COMM_NULL;  // who is still there: only used when an operation does not complete
  Duration deadline{};
  std::string lost;  // the message of the error that made the group unusable

  ~State();
  void check(int code, std::string_view what) const;
  template <class Buffers, class Start>
  void run(std::string_view what, std::shared_ptr<Buffers> buffers, const Start& start);
  [[noreturn]] void give_up(std::string_view what, std::shared_ptr<void> abandoned,
                            Clock::time_point started);
  std::set<int> absent_ranks();
};

HostGroup::State::~State() {
  int finalized = 0;
  if (size == 1 || MPI_Finalized(&finalized) != MPI_SUCCESS || finalized != 0 || !lost.empty()) return;
  MPI_Comm_free(&operations);
  MPI_Comm_free(&roll_call);
}

void HostGroup::State::check(int code, std::string_view what) const {
  if (code != MPI_SUCCESS)
    throw Error(fmt::format("rank {}: {}: {}", rank, what, mpi_message(code)), ExitCode::peer_lost);
}

/// start(buffers, request) begins the operation; buffers live until it is complete, or for ever if it never
/// is.
template <class Buffers, class Start>
void HostGroup::State::run(std::string_view what, std::shared_ptr<Buffers> buffers, const Start& start) {
  if (!lost.empty()) throw Error(fmt::format("{}: not possible after: {}", what, lost), ExitCode::peer_lost);
  const auto begun = Clock::now();
  MPI_Request request = MPI_REQUEST_NULL;
  check(start(*buffers, &request), what);
  BackOff back_off;
  for (;;) {
    int done = 0;
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
    if (done != 0) return;
    int other_gave_up = 0;
    if (back_off.slow())
      check(MPI_Iprobe(MPI_ANY_SOURCE, kRollCallTag, roll_call, &other_gave_up, MPI_STATUS_IGNORE), what);
    if (other_gave_up != 0 || Clock::now() - begun > deadline) give_up(what, std::move(buffers), begun);
    back_off.wait();
  }
}

void HostGroup::State::give_up(std::string_view what, std::shared_ptr<void> abandoned,
                               Clock::time_point begun) {
  // MPI cannot cancel a collective: it keeps its request and its buffers until the process ends.
  static std::vector<std::shared_ptr<void>>* const graveyard = new std::vector<std::shared_ptr<void>>;
  graveyard->push_back(std::move(abandoned));
  const double seconds = seconds_since(begun);
  const std::set<int> absent = absent_ranks();
  std::string who =
      absent.empty() ? "all ranks are alive, but do not call the same operation" : "missing: rank";
  for (const int r : absent) who += fmt::format("{} {}", r == *absent.begin() ? "" : ",", r);
  lost = fmt::format("rank {}: {}: gave up after {:.1f} s; {}", rank, what, seconds, who);
  throw Error(lost, ExitCode::peer_lost);
}

/// Every rank that gives up calls the others; whoever waits in an operation hears it, gives up too and so
/// answers.
std::set<int> HostGroup::State::absent_ranks() {
  static char nothing = 0;
  std::set<int> absent;
  for (int r = 0; r < size; ++r) {
    if (r == rank) continue;
    absent.insert(r);
    MPI_Request request = MPI_REQUEST_NULL;  // never waited for: nothing is sent but the envelope
    if (MPI_Isend(&nothing, 0, MPI_CHAR, r, kRollCallTag, roll_call, &request) == MPI_SUCCESS)
      MPI_Request_free(&request);
  }
  const auto begun = Clock::now();
  while (!absent.empty() && Clock::now() - begun < kRollCall) {
    int there = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, kRollCallTag, roll_call, &there, &status) != MPI_SUCCESS) break;
    if (there != 0) {
      MPI_Recv(&nothing, 0, MPI_CHAR, status.MPI_SOURCE, kRollCallTag, roll_call, MPI_STATUS_IGNORE);
      absent.erase(status.MPI_SOURCE);
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  return absent;
}

HostGroup::HostGroup() : state_(std::make_unique<State>()) {}
HostGroup::HostGroup(HostGroup&&) noexcept = default;
HostGroup& HostGroup::operator=(HostGroup&&) noexcept = default;
HostGroup::~HostGroup() = default;

HostGroup::HostGroup(MPI_Comm communicator, Duration deadline) : HostGroup() {
  state_->deadline = deadline;
  state_->check(MPI_Comm_size(communicator, &state_->size), "host group");
  state_->check(MPI_Comm_rank(communicator, &state_->rank), "host group");
  if (state_->size == 1) return;
  for (MPI_Comm* copy : {&state_->operations, &state_->roll_call}) {
    state_->check(MPI_Comm_dup(communicator, copy), "host group");
    state_->check(MPI_Comm_set_errhandler(*copy, MPI_ERRORS_RETURN), "host group");
  }
}

HostGroup HostGroup::duplicate() const {
  if (size() == 1) return {};
  if (!usable()) throw Error(fmt::format("no second group after: {}", state_->lost), ExitCode::peer_lost);
  return {state_->operations, state_->deadline};
}

bool HostGroup::usable() const {
  return state_->lost.empty();
}
int HostGroup::rank() const {
  return state_->rank;
}
int HostGroup::size() const {
  return state_->size;
}
HostGroup::Duration HostGroup::deadline() const {
  return state_->deadline;
}
void HostGroup::set_deadline(Duration deadline) {
  state_->deadline = deadline;
}

void HostGroup::barrier(std::string_view what) {
  if (size() == 1) return;
  state_->run(what, std::make_shared<char>(),
              [&](char&, MPI_Request* request) { return MPI_Ibarrier(state_->operations, request); });
}

std::int64_t HostGroup::all_reduce(std::int64_t value, Reduce reduce, std::string_view what) {
  all_reduce(std::span(&value, 1), reduce, what);
  return value;
}

double HostGroup::all_reduce(double value, Reduce reduce, std::string_view what) {
  all_reduce(std::span(&value, 1), reduce, what);
  return value;
}

void HostGroup::all_reduce(std::span<std::int64_t> values, Reduce reduce, std::string_view what) {
  if (size() == 1) return;
  auto buffer = std::make_shared<std::vector<std::int64_t>>(values.begin(), values.end());
  state_->run(what, buffer, [&](auto& v, MPI_Request* request) {
    return MPI_Iallreduce(MPI_IN_PLACE, v.data(), count_of(v.size(), what), MPI_INT64_T, op_of(reduce),
                          state_->operations, request);
  });
  std::copy(buffer->begin(), buffer->end(), values.begin());
}

void HostGroup::all_reduce(std::span<double> values, Reduce reduce, std::string_view what) {
  if (size() == 1) return;
  // Gathered and added in rank order, so that the bits depend on nothing that MPI is free to choose.
  const auto ranks = static_cast<std::size_t>(size());
  struct Buffers {
    std::vector<double> mine, all;
  };
  auto buffers = std::make_shared<Buffers>();
  buffers->mine.assign(values.begin(), values.end());
  buffers->all.resize(values.size() * ranks);
  state_->run(what, buffers, [&](Buffers& b, MPI_Request* request) {
    const int count = count_of(b.mine.size(), what);
    return MPI_Iallgather(b.mine.data(), count, MPI_DOUBLE, b.all.data(), count, MPI_DOUBLE,
                          state_->operations, request);
  });
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = buffers->all[i];
    for (std::size_t r = 1; r < ranks; ++r)
      values[i] = reduced(values[i], buffers->all[r * values.size() + i], reduce);
  }
}

std::string HostGroup::broadcast(std::string text, int root, std::string_view what) {
  if (size() == 1) return text;
  const std::int64_t length = all_reduce(
      rank() == root ? static_cast<std::int64_t>(text.size()) : std::int64_t{0}, Reduce::max, what);
  require(length <= kLargestText, "{}: a text of {} bytes, expected at most {}", what, length, kLargestText);
  auto buffer = std::make_shared<std::string>(std::move(text));
  buffer->resize(static_cast<std::size_t>(length));
  state_->run(what, buffer, [&](std::string& t, MPI_Request* request) {
    return MPI_Ibcast(t.data(), static_cast<int>(t.size()), MPI_CHAR, root, state_->operations, request);
  });
  return std::move(*buffer);
}

std::vector<std::int64_t> HostGroup::all_gather(std::int64_t value, std::string_view what) {
  if (size() == 1) return {value};
  struct Buffers {
    std::int64_t mine;
    std::vector<std::int64_t> all;
  };
  auto buffers = std::make_shared<Buffers>();
  buffers->mine = value;
  buffers->all.resize(static_cast<std::size_t>(size()));
  state_->run(what, buffers, [&](Buffers& b, MPI_Request* request) {
    return MPI_Iallgather(&b.mine, 1, MPI_INT64_T, b.all.data(), 1, MPI_INT64_T, state_->operations, request);
  });
  return std::move(buffers->all);
}

std::vector<std::string> HostGroup::gather(const std::string& text, int root, std::string_view what) {
  if (size() == 1) return {text};
  struct Buffers {
    std::string mine, all;
    std::vector<int> lengths, offsets;
  };
  auto buffers = std::make_shared<Buffers>();
  std::int64_t total = 0;
  for (const std::int64_t length : all_gather(static_cast<std::int64_t>(text.size()), what)) {
    require(length <= kLargestText - total, "{}: texts of more than {} bytes together", what, kLargestText);
    buffers->offsets.push_back(static_cast<int>(total));
    buffers->lengths.push_back(static_cast<int>(length));
    total += length;
  }
  buffers->mine = text;
  if (rank() == root) buffers->all.resize(static_cast<std::size_t>(total));
  state_->run(what, buffers, [&](Buffers& b, MPI_Request* request) {
    return MPI_Igatherv(b.mine.data(), static_cast<int>(b.mine.size()), MPI_CHAR, b.all.data(),
                        b.lengths.data(), b.offsets.data(), MPI_CHAR, root, state_->operations, request);
  });
  std::vector<std::string> texts;
  if (rank() == root)
    for (std::size_t r = 0; r < buffers->lengths.size(); ++r)
      texts.push_back(buffers->all.substr(static_cast<std::size_t>(buffers->offsets[r]),
                                          static_cast<std::size_t>(buffers->lengths[r])));
  return texts;
}

void HostGroup::all_or_error(std::string_view what, const std::function<void()>& work) {
  if (size() == 1) return work();
  auto code = ExitCode::ok;
  std::string message;
  try {
    work();
  } catch (const Error& e) {
    code = e.code();
    message = e.what();
  } catch (const std::exception& e) {
    code = ExitCode::bad_input;
    message = e.what();
  }
  const auto codes = all_gather(static_cast<std::int64_t>(code), what);
  const auto failed = std::find_if(codes.begin(), codes.end(), [](std::int64_t c) { return c != 0; });
  if (failed == codes.end()) return;
  const int first = static_cast<int>(failed - codes.begin());
  throw Error(fmt::format("rank {}: {}", first, broadcast(message, first, what)),
              static_cast<ExitCode>(*failed));
}

}  // namespace lapidary
