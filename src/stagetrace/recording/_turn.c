/* A request's turn in a thread of a pool in C: `_Turn` of pool_task.py, which says what it does and why (docs/decisions/011). */
#include "../native.h"

enum { REPORT, QUEUE, AT, ACCOUNT, LEAVE, HAND_OVER, IMPORTED, TURNS = IMPORTED, ALL };
static const char *const WHERE[IMPORTED][2] = {
    {"stagetrace.guard", "report"}, {"stagetrace.semconv", "QUEUE"},
    {"stagetrace.sources.thread_cpu", "AT"}, {"stagetrace.sources.thread_cpu", "account"},
    {"stagetrace.sources.thread_cpu", "leave"}, {"stagetrace.recording.pool_task", "hand_over"},
};
static PyObject *held[ALL]; /* of the one interpreter that has imported this; another one takes the reference */

#define NAMES(X) X(enter) X(leave) X(divide) X(handed_over) X(DIVIDED_NS)
enum { NAMES(PLACE) NAMED };
static const char *const WORDS[NAMED] = {NAMES(WORD)};
static PyObject *names[NAMED];
static Py_ssize_t at;

typedef struct {
    PyObject_HEAD
    PyObject *timeline, *function, *roomy;
    int64_t asked, ended, divided_ns;
    char waits;
} Turn;

static int done(PyObject *result) {
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* Say what has failed here and go on; return -1 where that is none of our errors. */
static int said(void) { return report_error(held[REPORT], "stagetrace.instrumentation.thread_pools.anyio"); }

static int leave(Turn *turn, PyObject *time) {
    if (!__atomic_exchange_n(&turn->waits, 0, __ATOMIC_RELAXED)) return 0; /* the thread, or the event loop, has */
    return done(PyObject_CallMethodObjArgs(turn->timeline, names[N_leave], held[QUEUE], time, NULL));
}

/* `_Turn._begin`: return the thread's account, or None; NULL with an exception. */
static PyObject *begin(Turn *turn) {
    int64_t time = clock_ns(CLOCK_REALTIME);
    PyObject *number = PyLong_FromLongLong(time), *account = NULL;
    if (number != NULL && leave(turn, number) == 0) {
        if (time - turn->asked < turn->divided_ns)
            account = PyObject_CallFunctionObjArgs(held[ACCOUNT], number, NULL);
        else
            account = PyObject_CallFunction(held[HAND_OVER], "OLOO", turn->timeline, (long long)turn->asked, number, turn->roomy);
    }
    Py_XDECREF(number);
    return account;
}

/* Note that the thread has nothing to do from now on, and how its time divides since `account`. */
static int finish(Turn *turn, PyObject *account) {
    turn->ended = clock_ns(CLOCK_REALTIME);
    PyObject *number = PyLong_FromLongLong(turn->ended);
    int result = number ? done(PyObject_CallFunctionObjArgs(held[LEAVE], number, NULL)) : -1;
    Py_XDECREF(number);
    if (result < 0 || account == NULL || account == Py_None) return result;
    PyObject *began = PyTuple_GetItem(account, at);
    long long since = began ? PyLong_AsLongLong(began) : -1;
    if (since == -1 && PyErr_Occurred()) return -1;
    if (since >= 0 && turn->ended - since < turn->divided_ns) return 0;
    return done(PyObject_CallMethodObjArgs(turn->timeline, names[N_divide], account, NULL));
}

static PyObject *call(PyObject *self, PyObject *args, PyObject *named) {
    Turn *turn = (Turn *)self;
    if (turn->function == NULL) return PyErr_Format(PyExc_RuntimeError, "this turn was garbage");
    PyObject *account = begin(turn);
    if (account == NULL && said() < 0) return NULL;
    PyObject *result = PyObject_Call(turn->function, args, named);
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    int failed = finish(turn, account);
    Py_XDECREF(account);
    if (failed < 0 && said() < 0) {
        Py_CLEAR(result);
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
    } else {
        PyErr_Restore(type, error, traceback);
    }
    return result;
}

static int take_back(Turn *turn) {
    PyObject *ended = NULL, *number = PyLong_FromLongLong(clock_ns(CLOCK_REALTIME));
    int result = number ? leave(turn, number) : -1;
    if (result == 0 && turn->ended && PyLong_AsLongLong(number) - turn->ended >= turn->divided_ns) {
        ended = PyLong_FromLongLong(turn->ended);
        result = ended ? done(PyObject_CallMethodObjArgs(turn->timeline, names[N_handed_over], ended, number, NULL)) : -1;
    }
    Py_XDECREF(ended);
    Py_XDECREF(number);
    return result;
}

static PyObject *end(PyObject *self, PyObject *Py_UNUSED(none)) {
    if (((Turn *)self)->timeline != NULL && take_back((Turn *)self) < 0 && said() < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *make(PyTypeObject *type, PyObject *args, PyObject *named) {
    PyObject *timeline, *function, *attributes, *roomy;
    if (named != NULL || !PyArg_ParseTuple(args, "OOOO", &timeline, &function, &attributes, &roomy))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "Turn takes four arguments");
    Turn *turn = (Turn *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (turn == NULL) return NULL;
    Py_INCREF(turn->timeline = timeline);
    Py_INCREF(turn->function = function);
    Py_INCREF(turn->roomy = roomy);
    turn->asked = clock_ns(CLOCK_REALTIME);
    turn->waits = 1;
    PyObject *number = PyLong_FromLongLong(turn->asked), *divided = PyObject_GetAttr(held[TURNS], names[N_DIVIDED_NS]);
    turn->divided_ns = divided ? PyLong_AsLongLong(divided) : -1;
    Py_XDECREF(divided);
    PyObject *entered = NULL;
    if (number != NULL && !PyErr_Occurred())
        entered = PyObject_CallMethodObjArgs(timeline, names[N_enter], held[QUEUE], attributes, number, NULL);
    if (done(entered) < 0) Py_CLEAR(turn);
    Py_XDECREF(number);
    return (PyObject *)turn;
}

static int traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Turn *)self)->timeline);
    Py_VISIT(((Turn *)self)->function);
    Py_VISIT(((Turn *)self)->roomy);
    return 0;
}

static int clear(PyObject *self) {
    Py_CLEAR(((Turn *)self)->timeline);
    Py_CLEAR(((Turn *)self)->function);
    Py_CLEAR(((Turn *)self)->roomy);
    return 0;
}

static void dealloc(PyObject *self) { free_object(self, clear); }

static PyMethodDef methods[] = {
    {"end", end, METH_NOARGS, "Take the request back to the event loop."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot turn_slots[] = {
    {Py_tp_doc, "What a request gives to a pool, as the pool's thread calls it."},
    {Py_tp_new, make}, {Py_tp_dealloc, dealloc}, {Py_tp_traverse, traverse}, {Py_tp_clear, clear}, {Py_tp_call, call},
    {Py_tp_methods, methods}, {0, NULL},
};

static PyType_Spec spec = {"stagetrace.recording._turn.Turn", sizeof(Turn), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, turn_slots};

/* --- the module */

static int fill(PyObject *module) {
    if (held[REPORT] != NULL) {
        PyErr_SetString(PyExc_ImportError, "in use by another interpreter of this process");
        return -1;
    }
    if (import_all(held, WHERE, IMPORTED) < 0) return -1;
    if (intern_all(names, WORDS, NAMED) < 0) return -1;
    if ((held[TURNS] = PyImport_ImportModule("stagetrace.recording.pool_task")) == NULL) return -1;
    at = PyLong_AsSsize_t(held[AT]);
    PyObject *turn = PyErr_Occurred() ? NULL : PyType_FromSpec(&spec);
    return turn ? PyModule_AddObject(module, "Turn", turn) : -1;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_turn", .m_slots = slots};

PyMODINIT_FUNC PyInit__turn(void) { return PyModuleDef_Init(&definition); }
