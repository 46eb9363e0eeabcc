/* SIGTERM's handler for sigterm.py: it runs at once, in whichever thread the signal interrupts and whatever that does,
 * and only wakes the thread that delivers. Python's own run in the main thread, as soon as that runs Python.
 *
 * It is put in place below Python, which goes on to say SIG_DFL to all who ask, and takes ours away with whatever the
 * application sets. A timer of the kernel's ends the process at the bound, though nobody can have the GIL until then.
 * Linux alone: elsewhere timers of this kind or unnamed semaphores are missing.
 */
#include "native.h"

#ifdef __linux__
#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef SYS_timer_settime
enum { S = 1000000000 };

/* What the handler reads is written before it is in place, or by it. */
static pid_t owner;     /* the process that catches; in a child of it a signal may come before it knows that it is one */
static sem_t wakes;     /* the thread that delivers */
static int timer;       /* which sends SIGTERM again, at the bound */
static int64_t bound;   /* of a delivery, in nanoseconds */
static int asked;       /* whether SIGTERM has come */
static int64_t ends_at; /* the bound's end, by the monotonic clock */

/* As the kernel knows it: glibc has these calls in a library of their own, until 2.34. */
static void set_timer(int64_t after) {
    struct { long every[2], at[2]; } times = {{0, 0}, {(long)(after / S), (long)(after % S)}};
    syscall(SYS_timer_settime, timer, 0, &times, NULL);
}

static void end_by_it(void) {
    signal(SIGTERM, SIG_DFL);
    kill(getpid(), SIGTERM);
}

static void on_sigterm(int Py_UNUSED(number)) {
    int error = errno;
    if (getpid() != owner) {
        end_by_it();
    } else if (!__atomic_exchange_n(&asked, 1, __ATOMIC_SEQ_CST)) {
        __atomic_store_n(&ends_at, clock_ns(CLOCK_MONOTONIC) + bound, __ATOMIC_SEQ_CST);
        set_timer(bound);
        sem_post(&wakes);
    } else if (clock_ns(CLOCK_MONOTONIC) >= __atomic_load_n(&ends_at, __ATOMIC_SEQ_CST)) {
        end_by_it();
    } /* else another one while it delivers, as from a service manager and from a parent that was told, too */
    errno = error;
}

static int is_ours(void) {
    struct sigaction now;
    return sigaction(SIGTERM, NULL, &now) == 0 && now.sa_handler == on_sigterm;
}

static int begin(void) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGTERM};
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer) < 0 || sem_init(&wakes, 0, 0) < 0) return -1;
    asked = 0;
    ends_at = INT64_MAX;
    owner = getpid();
    return 0;
}

/* With the GIL, so that no signal.signal() comes between the question and the answer. */
static PyObject *catch_it(PyObject *Py_UNUSED(module), PyObject *seconds) {
    struct sigaction now, ours = {.sa_handler = on_sigterm, .sa_flags = SA_RESTART | SA_ONSTACK};
    double given = PyFloat_AsDouble(seconds);
    if (PyErr_Occurred()) return NULL;
    if (sigaction(SIGTERM, NULL, &now) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    if (now.sa_handler == on_sigterm && owner == getpid()) Py_RETURN_TRUE;
    if (now.sa_handler != SIG_DFL && now.sa_handler != on_sigterm) Py_RETURN_FALSE;
    if (owner != getpid() && begin() < 0) return PyErr_SetFromErrno(PyExc_OSError);
    bound = (int64_t)(given * S);
    if (sigaction(SIGTERM, &ours, NULL) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_TRUE;
}

static void mask_in_this_thread(int how) {
    sigset_t sigterm;
    sigemptyset(&sigterm);
    sigaddset(&sigterm, SIGTERM);
    pthread_sigmask(how, &sigterm, NULL);
}

static PyObject *wait_for_it(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    mask_in_this_thread(SIG_BLOCK); /* an application may block it in all its threads, to fetch it itself */
    Py_BEGIN_ALLOW_THREADS;
    while (sem_wait(&wakes) < 0 && errno == EINTR) continue;
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *was_asked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    return PyBool_FromLong(owner == getpid() && __atomic_load_n(&asked, __ATOMIC_SEQ_CST));
}

static PyObject *give_up(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    if (is_ours()) signal(SIGTERM, SIG_DFL);
    Py_RETURN_NONE;
}

static PyObject *end(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    set_timer(0);
    __atomic_store_n(&ends_at, 0, __ATOMIC_SEQ_CST); /* for a handler that calls ours, as faulthandler's may */
    if (is_ours()) signal(SIGTERM, SIG_DFL);
    mask_in_this_thread(SIG_UNBLOCK);
    raise(SIGTERM); /* of a process the kernel may leave it to any thread, and go on here */
    __atomic_store_n(&ends_at, INT64_MAX, __ATOMIC_SEQ_CST);
    __atomic_store_n(&asked, 0, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}
#endif

static PyMethodDef functions[] = {
#ifdef SYS_timer_settime
    {"catch_sigterm", catch_it, METH_O,
     "Let SIGTERM wake `wait` where it would end the process, which it does so many seconds later at the latest; return\n"
     "whether that is so: not where somebody else handles or ignores it. Raises OSError."},
    {"wait_for_sigterm", wait_for_it, METH_NOARGS, "Return when SIGTERM has come."},
    {"sigterm_came", was_asked, METH_NOARGS, "Return whether SIGTERM has come to this process, and `end` was not called since."},
    {"give_up_sigterm", give_up, METH_NOARGS, "Let SIGTERM end the process at once again."},
    {"end_by_sigterm", end, METH_NOARGS,
     "End by SIGTERM. Returns where the kernel spares the process, as the first one of a container, or where somebody\n"
     "handles the signal by now."},
#endif
    {NULL, NULL, 0, NULL},
};

const Group sigterm_group = {"sigterm", functions, NULL};
