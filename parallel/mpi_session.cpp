#include "parallel/mpi_session.h"

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/check.h"
#include "parallel/host_group.h"
#include "parallel/mpi_check.h"

namespace lapidary {

namespace {

using std::chrono::milliseconds;

constexpr milliseconds kFailureDeadline{2000};
constexpr milliseconds kPatience{std::chrono::hours{24 * 365}};  // of a rank that is done

struct Outcome {
  int code = 0;
  std::string message;  // empty: nothing to print
};

Outcome outcome_of(const std::function<int()>& body) {
  try {
    return {body(), ""};
  } catch (const Error& e) {
    return {static_cast<int>(e.code()), e.what()};
  } catch (const std::bad_alloc&) {
    return {static_cast<int>(ExitCode::bad_input), "out of host memory"};
  } catch (const std::exception& e) {
    return {static_cast<int>(ExitCode::bad_input), e.what()};
  }
}

void print(const std::string& text) {
  std::fflush(stdout);
  fmt::print(stderr, "{}\n", text);
  std::fflush(stderr);
}

// Each different message once, with its ranks unless all say the same.
void print_messages(const std::vector<std::string>& messages) {
  std::vector<std::string> printed{""};
  for (const std::string& message : messages) {
    if (std::ranges::find(printed, message) != printed.end()) continue;
    printed.push_back(message);
    std::vector<std::size_t> ranks;
    for (std::size_t rank = 0; rank < messages.size(); ++rank) {
      if (messages[rank] == message) ranks.push_back(rank);
    }
    if (ranks.size() == messages.size()) {
      print(message);
    } else {
      print(fmt::format("rank{} {}: {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", "), message));
    }
  }
}

[[noreturn]] void abort_job(int rank, const Outcome& outcome) {
  // Several ranks that run out of time together: the lowest ends the job before the others print.
  std::this_thread::sleep_for(std::min(milliseconds(20) * rank, milliseconds(500)));
  if (!outcome.message.empty()) print(fmt::format("rank {}: {}", rank, outcome.message));
  MPI_Abort(MPI_COMM_WORLD, outcome.code);
  std::_Exit(outcome.code);
}

// Agrees on the end with the other ranks. Returns the job's exit code, or does not return.
int conclude(HostGroup& group, const Outcome& outcome) {
  if (communication_abandoned()) abort_job(group.rank(), outcome);
  group.set_deadline(outcome.code == 0 ? kPatience : kFailureDeadline);
  try {
    const auto codes = group.all_gather(outcome.code, "end of the run");
    const auto failed = std::ranges::find_if(codes, [](std::int64_t code) { return code != 0; });
    if (failed == codes.end()) return 0;
    const auto messages = group.gather(outcome.message, 0, "end of the run");
    if (group.rank() == 0) print_messages(messages);
    return static_cast<int>(*failed);
  } catch (const Error&) {
    if (outcome.code != 0) abort_job(group.rank(), outcome);
    std::this_thread::sleep_for(std::chrono::seconds(10));  // the rank that failed ends the job
    std::_Exit(static_cast<int>(ExitCode::peer_lost));
  }
}

// Every task would be a job of its own, or MPI_Init ends it with a page of text (Slurm's --mpi=none and
// pmi2).
void refuse_srun_without_pmix() {
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  if (tasks == nullptr) tasks = std::getenv("SLURM_NTASKS");
  if (tasks == nullptr || std::atoi(tasks) <= 1) return;
  for (const char* launcher : {"PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"}) {
    if (std::getenv(launcher) != nullptr) return;
  }
  fail(
      "this process is one of {} Slurm tasks, but MPI cannot find the others: use `srun --mpi=pmix` or "
      "mpirun",
      tasks);
}

}  // namespace

MpiSession::MpiSession(int argc, char** argv) {
  refuse_srun_without_pmix();
  int provided = 0;
  mpi_check(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread", "world");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  require(provided == MPI_THREAD_MULTIPLE, "this MPI library offers thread level {}, expected {} (MULTIPLE)",
          provided, MPI_THREAD_MULTIPLE);
  mpi_check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "set-up", "world");
  mpi_check(MPI_Comm_size(MPI_COMM_WORLD, &size_), "set-up", "world");
  MPI_Comm node = MPI_COMM_NULL;
  mpi_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node), "set-up",
            "node");
  int here = 0;
  mpi_check(MPI_Comm_rank(node, &local_rank_), "set-up", "node");
  mpi_check(MPI_Comm_size(node, &here), "set-up", "node");
  mpi_check(MPI_Comm_free(&node), "set-up", "node");
  mpi_check(MPI_Allreduce(&here, &ranks_per_node_, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD), "set-up", "world");
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  host_ = name.data();
}

MpiSession::~MpiSession() {
  MPI_Finalize();
}

int run_guarded(int argc, char** argv, const std::function<int(const MpiSession&)>& body) {
  std::optional<MpiSession> session;
  const Outcome start = outcome_of([&] {
    session.emplace(argc, argv);
    return 0;
  });
  if (start.code != 0) {
    print(start.message);
    return start.code;
  }
  HostGroup group(MPI_COMM_WORLD, kFailureDeadline);
  const Outcome outcome = outcome_of([&] { return body(*session); });
  if (session->size() > 1) return conclude(group, outcome);
  if (!outcome.message.empty()) print(outcome.message);
  return outcome.code;
}

}  // namespace lapidary
