/* What is read of the kernel for each request, in C (docs/decisions/011).
 *
 * A thread's account (thread_cpu.py): os.pread() lets go of the GIL, and where other threads compute, each of them keeps it
 * for five milliseconds before the reader has it back. So for the list of threads (process_cpu.py). TCP_INFO
 * (socket_wait.py): what uvloop gives as a connection's socket makes a socket object for each question.
 */
#include "native.h"
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SIZE = 64, TRIES = 3, AT_ONCE_NS = 50000, MOST_INFO = 512 }; /* as in thread_cpu.py */

static PyObject *read_account(PyObject *Py_UNUSED(module), PyObject *descriptor) {
    char said[SIZE];
    ssize_t size = -1;
    int64_t at = 0, computed = 0, least = INT64_MAX, tried = clock_ns(CLOCK_MONOTONIC);
    int number = PyObject_AsFileDescriptor(descriptor);
    if (number < 0) return NULL;
    for (int i = 0; i < TRIES; i++) {
        at = clock_ns(CLOCK_REALTIME);
        computed = clock_ns(CLOCK_THREAD_CPUTIME_ID); /* which schedstat has only as of the last tick */
        size = pread(number, said, SIZE, 0);
        if (size < 0) return PyErr_SetFromErrno(PyExc_OSError);
        int64_t ended = clock_ns(CLOCK_MONOTONIC), took = ended - tried;
        if (took < least) least = took;
        if (took < AT_ONCE_NS) break; /* else it lost the CPU between them */
        tried = ended;
    }
    int64_t process = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    return Py_BuildValue("LLy#LL", (long long)at, (long long)computed, said, (Py_ssize_t)size, (long long)process,
                         (long long)least);
}

#ifdef TCP_INFO
/* Return the first bytes of TCP_INFO of a connection, which has a `fileno`. */
static PyObject *tcp_info(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    if (given != 2) return PyErr_Format(PyExc_TypeError, "tcp_info takes a connection and a size");
    char info[MOST_INFO];
    PyObject *descriptor = PyObject_CallMethod(args[0], "fileno", NULL);
    long found = descriptor ? PyLong_AsLong(descriptor) : -1; /* -1 of one that is closed: EBADF */
    Py_XDECREF(descriptor);
    long asked = PyErr_Occurred() ? -1 : PyLong_AsLong(args[1]);
    if (PyErr_Occurred()) return NULL;
    int number = found < 0 || found > INT_MAX ? -1 : (int)found;
    socklen_t size = asked < 0 ? 0 : asked < MOST_INFO ? (socklen_t)asked : MOST_INFO;
    if (getsockopt(number, IPPROTO_TCP, TCP_INFO, info, &size) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    return PyBytes_FromStringAndSize(info, (Py_ssize_t)size);
}
#endif

#define TASKS "/proc/self/task"

/* Return a number that is another where this process has more or fewer threads. */
static PyObject *count_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    struct stat found;
    if (stat(TASKS, &found) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromUnsignedLongLong((unsigned long long)found.st_nlink);
}

static PyObject *list_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    DIR *tasks = opendir(TASKS);
    if (tasks == NULL) return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *threads = PyList_New(0);
    for (struct dirent *entry; threads != NULL && (entry = readdir(tasks)) != NULL;) {
        long number = strtol(entry->d_name, NULL, 10); /* 0 of "." and ".." */
        if (number <= 0) continue;
        PyObject *thread = PyLong_FromLong(number);
        if (thread == NULL || PyList_Append(threads, thread) < 0) Py_CLEAR(threads);
        Py_XDECREF(thread);
    }
    closedir(tasks);
    return threads;
}

static PyMethodDef functions[] = {
    {"count_threads", count_threads, METH_NOARGS,
     "Return a number that changes with how many threads this process has; raises OSError."},
    {"list_threads", list_threads, METH_NOARGS, "Return the kernel's numbers of this process's threads; raises OSError."},
#ifdef TCP_INFO
    {"tcp_info", (PyCFunction)(void (*)(void))tcp_info, METH_FASTCALL,
     "Return the first so many bytes of a connection's TCP_INFO; raises OSError."},
#endif
    {"read_account", read_account, METH_O,
     "Return the time, the thread's CPU time, its schedstat, the process's CPU time, how long that took; raises OSError."},
    {NULL, NULL, 0, NULL},
};

const Group kernel_group = {"kernel", functions, NULL};
