/* The reading of a thread's account in C (threads.py, docs/decisions/011): os.pread() lets go of the GIL, and where other
 * threads compute, each of them keeps it for five milliseconds before the reader has it back.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 64, TRIES = 3, AT_ONCE_NS = 50000 }; /* as in threads.py */

static int64_t nanoseconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static PyObject *read_account(PyObject *module, PyObject *descriptor) {
    (void)module;
    char said[SIZE];
    ssize_t size = -1;
    int64_t at = 0, began = nanoseconds(CLOCK_MONOTONIC);
    int number = PyObject_AsFileDescriptor(descriptor);
    if (number < 0) return NULL;
    for (int i = 0; i < TRIES; i++) {
        at = nanoseconds(CLOCK_REALTIME);
        size = pread(number, said, SIZE, 0);
        if (size < 0) return PyErr_SetFromErrno(PyExc_OSError);
        if (nanoseconds(CLOCK_REALTIME) - at < AT_ONCE_NS) break; /* else it lost the CPU between the two */
    }
    int64_t computed = nanoseconds(CLOCK_PROCESS_CPUTIME_ID), took = nanoseconds(CLOCK_MONOTONIC) - began;
    return Py_BuildValue("Ly#LL", (long long)at, said, (Py_ssize_t)size, (long long)computed, (long long)took);
}

static PyMethodDef functions[] = {
    {"read_account", read_account, METH_O,
     "Return the time, what a schedstat file says, the process's CPU time, and how long it took; raises OSError."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_threads", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__threads(void) { return PyModuleDef_Init(&definition); }
