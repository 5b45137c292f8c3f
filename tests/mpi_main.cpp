// The main of every multi-rank test: owns MPI, lets rank 0 report, fails everywhere if any rank failed.
// --hang-rank N makes rank N wait for a debugger before the tests start.
#include <gtest/gtest.h>
#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i + 1 < argc; ++i) {
    if (std::string(argv[i]) == "--hang-rank" && std::atoi(argv[i + 1]) == rank) {
      std::fprintf(stderr, "rank %d waits for a debugger: gdb -p %d, then set go = 1\n", rank, getpid());
      for (volatile int go = 0; !go;) sleep(1);
    }
  }
  if (rank != 0) {  // failures are still printed by the assertion itself
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    struct FailurePrinter : testing::EmptyTestEventListener {
      int rank;
      explicit FailurePrinter(int r) : rank(r) {}
      void OnTestPartResult(const testing::TestPartResult& r) override {
        if (r.failed())
          std::fprintf(stderr, "rank %d: %s:%d: %s\n", rank, r.file_name(), r.line_number(), r.message());
      }
    };
    listeners.Append(new FailurePrinter(rank));
  }
  int failed = RUN_ALL_TESTS();
  if (testing::UnitTest::GetInstance()->test_to_run_count() == 0) failed = 1;
  int any = 0;
  MPI_Allreduce(&failed, &any, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return any;
}
