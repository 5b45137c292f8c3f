#include "trainer/stop_signal.h"

#include <cerrno>

#include "kernels/check.h"
#include "kernels/file.h"

namespace lapidary {
namespace {

volatile std::sig_atomic_t stop_asked = 0;
volatile std::sig_atomic_t save_asked = 0;

extern "C" void ask_to_stop(int) {
  stop_asked = 1;
}
extern "C" void ask_to_save(int) {
  save_asked = 1;
}

void install(int signal, void (*handler)(int), int flags, struct sigaction& before) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART | flags;
  sigemptyset(&action.sa_mask);
  if (sigaction(signal, &action, &before) != 0)
    fail_with_errno("cannot handle signal", std::to_string(signal), errno);
}

}  // namespace

StopSignals::StopSignals() {
  stop_asked = 0;
  save_asked = 0;
  install(SIGUSR1, ask_to_stop, 0, before_usr1_);
  install(SIGUSR2, ask_to_save, 0, before_usr2_);
  // Once: the system then puts the default back, which is to end, so that a second TERM needs nothing from
  // us.
  install(SIGTERM, ask_to_stop, static_cast<int>(SA_RESETHAND), before_term_);
}

StopSignals::~StopSignals() {
  sigaction(SIGUSR1, &before_usr1_, nullptr);
  sigaction(SIGUSR2, &before_usr2_, nullptr);
  sigaction(SIGTERM, &before_term_, nullptr);
}

StopRequest StopSignals::take() {
  if (stop_asked != 0) return StopRequest::stop;
  if (save_asked == 0) return StopRequest::none;
  save_asked = 0;  // one that arrives just now is answered by the save that follows
  return StopRequest::save;
}

}  // namespace lapidary
