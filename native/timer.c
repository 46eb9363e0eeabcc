/* A timer of the kernel that one thread waits for, in C: in_flight.py says why.
 *
 * To set it is one system call, for which the GIL is kept: another thread would have it meanwhile. The thread that waits
 * has let go of the GIL, and measures how late it is both before it asks for the GIL again and once it has it.
 *
 * The service may close descriptors that are not its own, as a process that becomes a daemon does; then another file may
 * have the timer's number. So each timer has an interval of its own, decades long, by which it is known again before it
 * is set or read: all timers, eventfds and epolls have the same inode.
 */
#include "native.h"
#include "holder.h"

#ifdef __linux__
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { SECOND = 1000000000, LONG_NS = 5000000, MOST_THREADS = 256 };

/* What a thread of this process had computed at one time. */
typedef struct {
    long number;
    int64_t computed;
} Clock;

static struct timespec timespec_of(int64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / SECOND), .tv_nsec = (long)(ns % SECOND)};
}

static int64_t ns_of(struct timespec time) { return (int64_t)time.tv_sec * SECOND + time.tv_nsec; }

/* Read the arguments of a function, which are integers. */
static bool read_all(int64_t *values, PyObject *const *args, Py_ssize_t given, Py_ssize_t wanted) {
    if (given != wanted) PyErr_Format(PyExc_TypeError, "takes %zd integers", wanted);
    for (Py_ssize_t i = 0; i < wanted && !PyErr_Occurred(); i++) values[i] = PyLong_AsLongLong(args[i]);
    return !PyErr_Occurred();
}

/* Return in how many nanoseconds the timer ends, 0 if it is not set; -1 where the number is another file's by now. */
static int64_t left_of(int number, int64_t interval) {
    struct itimerspec now;
    if (timerfd_gettime(number, &now) < 0) return -1;
    if (ns_of(now.it_interval) == interval) return ns_of(now.it_value);
    errno = EBADF;
    return -1;
}

static int set(int number, int64_t interval, int64_t after) {
    struct itimerspec time = {.it_interval = timespec_of(interval), .it_value = timespec_of(after)};
    return timerfd_settime(number, 0, &time, NULL);
}

/* Return the descriptor of a new timer with this interval. */
static PyObject *make_timer(PyObject *Py_UNUSED(module), PyObject *interval) {
    int64_t every;
    if (!read_all(&every, &interval, 1, 1)) return NULL;
    int number = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (number < 0) return PyErr_SetFromErrno(PyExc_OSError);
    if (set(number, every, 0) == 0 && left_of(number, every) == 0) return PyLong_FromLong(number);
    PyErr_SetFromErrno(PyExc_OSError);
    close(number);
    return NULL;
}

static PyObject *set_timer(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    int64_t values[3];
    if (!read_all(values, args, given, 3)) return NULL;
    int number = (int)values[0];
    if (left_of(number, values[1]) < 0 || set(number, values[1], values[2]) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* Wait until the timer ends; return by how much that is past, -1 where it is not there any more. Without the GIL. */
static int64_t wait_for(int number, int64_t interval) {
    while (left_of(number, interval) >= 0) {
        struct pollfd one = {.fd = number, .events = POLLIN};
        uint64_t ends;
        if (poll(&one, 1, -1) < 0 && errno != EINTR) break;
        int64_t left = left_of(number, interval);
        if (left < 0) break;
        if (read(number, &ends, sizeof ends) == sizeof ends)
            return left > interval / 2 ? interval - left : 0; /* 0: it was set anew just now */
        if (errno != EAGAIN && errno != EINTR) break; /* EAGAIN: it was set later just now */
    }
    return -1;
}

/* Read the CPU clocks of the threads of this process, without the GIL; return of how many. */
static int read_clocks(Clock *clocks) {
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; tasks != NULL && count < MOST_THREADS && (entry = readdir(tasks)) != NULL;) {
        long number = strtol(entry->d_name, NULL, 10); /* 0 of "." and ".." */
        clockid_t clock = (clockid_t)((~(unsigned int)number << 3) | 6); /* the kernel's MAKE_THREAD_CPUCLOCK */
        struct timespec time;
        if (number > 0 && clock_gettime(clock, &time) == 0) clocks[count++] = (Clock){number, ns_of(time)};
    }
    if (tasks != NULL) closedir(tasks);
    return count;
}

/* Return the clocks as a dict, by the number of the thread. */
static PyObject *dict_of(const Clock *clocks, int count) {
    PyObject *dict = PyDict_New();
    for (int i = 0; dict != NULL && i < count; i++) {
        PyObject *number = PyLong_FromLong(clocks[i].number), *computed = PyLong_FromLongLong(clocks[i].computed);
        if (number == NULL || computed == NULL || PyDict_SetItem(dict, number, computed) < 0) Py_CLEAR(dict);
        Py_XDECREF(number);
        Py_XDECREF(computed);
    }
    return dict;
}

static PyObject *wait_for_timer(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    int64_t values[2], late, ready = 0;
    if (!read_all(values, args, given, 2)) return NULL;
    Clock clocks[MOST_THREADS];
    int failed, count = 0;
    bool is_seen = false;
    Py_BEGIN_ALLOW_THREADS
    late = wait_for((int)values[0], values[1]);
    failed = errno;
    if (late >= 0) {
        is_seen = look_at_holder();
        count = read_clocks(clocks);
    }
    ready = clock_ns(CLOCK_MONOTONIC);
    Py_END_ALLOW_THREADS
    int64_t held = clock_ns(CLOCK_MONOTONIC) - ready;
    PyObject *holder = is_seen ? holder_seen() : (Py_INCREF(Py_None), Py_None);
    if (is_seen) forget_holder();
    errno = failed;
    if (late < 0) return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *computed = holder ? dict_of(clocks, held >= LONG_NS ? count : 0) : NULL;
    if (computed) return Py_BuildValue("LLNN", (long long)late, (long long)held, computed, holder);
    Py_XDECREF(holder);
    return NULL;
}

/* Return the kernel's letter for the state of a thread of this process, by its number; "" where it has ended. The GIL is
 * kept: who gives it up, and asks for it again, changes what threads do. */
static PyObject *thread_state(PyObject *Py_UNUSED(module), PyObject *number) {
    char path[64], said[128];
    long thread = PyLong_AsLong(number);
    if (thread == -1 && PyErr_Occurred()) return NULL;
    PyOS_snprintf(path, sizeof path, "/proc/self/task/%ld/stat", thread);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? 0 : read(file, said, sizeof said - 1);
    if (file >= 0) close(file);
    said[size < 0 ? 0 : size] = 0;
    const char *name_end = strrchr(said, ')'); /* the name before it may hold anything */
    bool is_whole = name_end != NULL && name_end[1] == ' ' && name_end[2] != 0;
    return PyUnicode_FromStringAndSize(is_whole ? name_end + 2 : "", is_whole);
}

/* Return what a thread that waits for the GIL now, its timer past, has seen of the thread that had it; or None. */
static PyObject *seen_meanwhile(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) { return holder_seen(); }

static PyObject *sees_the_holder(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    return PyBool_FromLong(sees_holder());
}

static PyObject *close_timer(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    int64_t values[2];
    if (!read_all(values, args, given, 2)) return NULL;
    if (left_of((int)values[0], values[1]) >= 0) close((int)values[0]);
    Py_RETURN_NONE;
}

static int fill(PyObject *Py_UNUSED(module)) {
    find_holder();
    return 0;
}
#else
#define fill NULL
#endif

static PyMethodDef functions[] = {
#ifdef __linux__
    {"make_timer", make_timer, METH_O, "Return the descriptor of a new timer that has this interval; raises OSError."},
    {"set_timer", (PyCFunction)(void (*)(void))set_timer, METH_FASTCALL,
     "Let the timer of a descriptor and an interval end after so many nanoseconds, 0: not at all; raises OSError."},
    {"wait_for_timer", (PyCFunction)(void (*)(void))wait_for_timer, METH_FASTCALL,
     "Wait until the timer of a descriptor and an interval ends; return for how many nanoseconds a CPU, and then the GIL, "
     "was waited for, and, where the latter was long, what each thread had computed before it; and where the thread stood "
     "that had the GIL; raises OSError."},
    {"sees_holder", sees_the_holder, METH_NOARGS, "Return whether a timer sees which thread has the GIL."},
    {"thread_state", thread_state, METH_O, "Return the kernel's letter for the state of a thread, by its number."},
    {"seen_meanwhile", seen_meanwhile, METH_NOARGS,
     "Return where a thread stood that had the GIL, as seen by one that waits for the GIL still; or None."},
    {"close_timer", (PyCFunction)(void (*)(void))close_timer, METH_FASTCALL,
     "Close the timer of a descriptor and an interval, if it is still there."},
#endif
    {NULL, NULL, 0, NULL},
};

const Group timer_group = {"timer", functions, fill};
