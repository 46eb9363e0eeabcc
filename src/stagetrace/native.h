/* What the parts in C share. */
#ifndef STAGETRACE_NATIVE_H
#define STAGETRACE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <time.h>

/* Read one of the system's clocks, in nanoseconds. */
static inline int64_t clock_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Give the error that is set to guard.report, which is `report`, and go on; return -1 where it is none of our errors. */
static inline int report_error(PyObject *report, const char *where) {
    PyObject *type, *error, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return -1;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *done = PyObject_CallFunction(report, "sO", where, error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Free an object of a type that is made at the import, or the part of a subclass's that is ours. */
static inline void free_object(PyObject *self, inquiry clear) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Let `objects` be what `from` names: of each a module, and what of it. */
static inline int import_all(PyObject **objects, const char *const (*from)[2], int count) {
    for (int i = 0; i < count; i++) {
        PyObject *module = PyImport_ImportModule(from[i][0]);
        objects[i] = module ? PyObject_GetAttrString(module, from[i][1]) : NULL;
        Py_XDECREF(module);
        if (objects[i] == NULL) return -1;
    }
    return 0;
}

/* Names that are looked up often: a file has its own list, `#define NAMES(X) X(one) X(other)`, and then
 * `enum { NAMES(PLACE) NAMED }` for N_one and N_other, their places in `names`, and `WORDS` of NAMES(WORD). */
#define PLACE(word) N_##word,
#define WORD(word) #word,

static inline int intern_all(PyObject **names, const char *const *words, int count) {
    for (int i = 0; i < count; i++)
        if ((names[i] = PyUnicode_InternFromString(words[i])) == NULL) return -1;
    return 0;
}

#endif
