/* What the parts in C share. */
#ifndef STAGETRACE_NATIVE_H
#define STAGETRACE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Give the error that is set to guard.report, which is `report`, and go on; return -1 where it is none of our errors. */
static int report_error(PyObject *report, const char *where) {
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

#endif
