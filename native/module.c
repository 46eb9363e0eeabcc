/* The module `stagetrace._native`: groups of functions and types, each of which is imported when Python code asks for it.
 *
 * A process that serves needs other groups than one that stores spans, and some groups hold objects of Python modules,
 * which are still being imported when the first group is wanted. One interpreter of a process can have the module: some
 * groups keep what they hold in static variables. setup.py compiles all for the stable ABI of 3.10, except on
 * free-threaded builds, for which there is none.
 */
#include "native.h"

static const Group *const GROUPS[] = {
    &kernel_group, &blocked_threads_group, &sigterm_group, &timer_group, &stacks_group, &encoder_group, &marks_group,
    &stage_group, &histograms_group,
};
enum { COUNT = sizeof GROUPS / sizeof *GROUPS };

static bool is_ready[COUNT];

/* Add the functions and types of one group, if they are not there yet. */
static PyObject *prepare(PyObject *module, PyObject *name) {
    int at = 0;
    if (!PyUnicode_Check(name)) return PyErr_Format(PyExc_TypeError, "a group is named by a str");
    while (at < COUNT && PyUnicode_CompareWithASCIIString(name, GROUPS[at]->name) != 0) at++;
    if (at == COUNT) return PyErr_Format(PyExc_ValueError, "there is no group %R", name);
    if (!is_ready[at]) {
        const Group *group = GROUPS[at];
        if (group->fill != NULL && group->fill(module) < 0) return NULL;
        if (group->functions != NULL && PyModule_AddFunctions(module, group->functions) < 0) return NULL;
        is_ready[at] = true;
    }
    Py_RETURN_NONE;
}

/* Refuse all interpreters of a process but the first. */
static int begin(PyObject *module) {
    static int is_in_use;
    if (__atomic_exchange_n(&is_in_use, 1, __ATOMIC_SEQ_CST))
        return fail(PyExc_ImportError, "in use by another interpreter of this process");
    PyObject *names = PyTuple_New(COUNT);
    for (int i = 0; names != NULL && i < COUNT; i++) {
        PyObject *name = PyUnicode_FromString(GROUPS[i]->name);
        if (name == NULL) Py_CLEAR(names);
        else PyTuple_SetItem(names, i, name);
    }
    return names ? PyModule_AddObject(module, "GROUPS", names) : -1;
}

static PyMethodDef functions[] = {
    {"prepare", prepare, METH_O, "Add the functions and types of the group of this name, one of GROUPS, to the module."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, begin},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_methods = functions, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
