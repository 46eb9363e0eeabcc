/* What an awaitable in C is asked for as a coroutine: between `send`, which knows of results, and exceptions. */
#ifndef STAGETRACE_COROUTINE_H
#define STAGETRACE_COROUTINE_H

#include <Python.h>

static PySendResult over(PyObject **result) {
    *result = NULL;
    PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    return PYGEN_ERROR;
}

/* Return what was yielded; or NULL with StopIteration or the exception that ended it. */
static PyObject *as_method(PySendResult status, PyObject *result) {
    if (status != PYGEN_RETURN) return result;
    PyObject *value = result == Py_None ? NULL : result; /* a coroutine raises StopIteration() for None */
    PyObject *stop = PyObject_CallFunctionObjArgs(PyExc_StopIteration, value, NULL);
    if (stop != NULL) PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    Py_DECREF(result);
    return NULL;
}

/* Return the value of the StopIteration that is set, or NULL if another exception is. */
static PyObject *stopped(void) {
    PyObject *type, *error, *traceback;
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) return NULL;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *value = PyObject_GetAttrString(error, "value");
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return value;
}

#endif
