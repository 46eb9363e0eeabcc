/* Receive and Send of channels.py, and `stepped` of holders.py, in C (docs/decisions/011).
 *
 * What they do and why is said where the reference is. A call returns a Step: an awaitable that runs the server's own
 * coroutine within itself, where a coroutine in Python would stand around it. hatch_build.py compiles this for the
 * stable ABI of 3.10.
 */
#include "../native.h"
#include "coroutine.h"
#include <stdbool.h>

/* Of the one interpreter that has imported this; another one, within the same process, takes the reference. */
enum {
    CURRENT_GET, CURRENT_SET, CONTEXT_GET, CONTEXT_SET, NO_CONTEXT, REPORT, COROUTINE, ACCOUNT, END_STEP, DIVIDED, /* imported */
    IMPORTED, ENTER = IMPORTED, LEAVE, BEGIN_ANSWER, ADD_PIECE, END_ANSWER, TAKE_IN, GO_AWAY, AWAIT, TYPE, TRAILERS,
    MORE_TRAILERS, MORE_BODY, BODY, RECEIVING, SENDING, WAITED, STEP_BEGUN, STEP, HELD
};
static PyObject *held[HELD];

static const char *const WHERE[IMPORTED][2] = {
    {"stagetrace.recording.current_timeline", "current"}, {"stagetrace.recording.current_timeline", "current"}, /* what of it: below */
    {"stagetrace.recording.context", "get_current"}, {"stagetrace.recording.context", "attach"},
    {"stagetrace.recording.context", "NO_CONTEXT"}, {"stagetrace.guard", "report"}, {"types", "CoroutineType"},
    {"stagetrace.sources.thread_cpu", "account"}, {"stagetrace.recording.loop_blockers", "end_step"},
    {"stagetrace.sources.thread_cpu", "DIVIDED_NS"},
};
static int64_t divided_ns; /* DIVIDED_NS */
static const struct { int place; const char *text; } WORDS[] = {
    {ENTER, "enter"}, {LEAVE, "leave"}, {BEGIN_ANSWER, "begin_answer"}, {ADD_PIECE, "add_piece"},
    {END_ANSWER, "end_answer"}, {TAKE_IN, "take_in"}, {GO_AWAY, "go_away"}, {BODY, "body"},
    {AWAIT, "__await__"}, {TYPE, "type"}, {TRAILERS, "trailers"}, {MORE_TRAILERS, "more_trailers"},
    {MORE_BODY, "more_body"}, {RECEIVING, "network.receive"}, {SENDING, "network.send"},
    {WAITED, "waited_for_peer"},
    {STEP_BEGUN, "step"},
};

/* A Receive or a Send. */
typedef struct {
    PyObject_HEAD
    PyObject *timeline, *pass, *answered; /* `pass` is the server's own; answered: NULL if nobody wants to know */
    bool complete, has_trailers;
} Passing;

/* One call of a Receive, or of a Send, which has a message; or, without a Passing, the work of a request. */
typedef struct {
    PyObject_HEAD
    Passing *passing;
    PyObject *message, *inner;    /* of work: the request; inner: the server's awaitable, once begun */
    PyObject *timeline, *context; /* put aside while the server sends, or NULL */
    int64_t waits_since; /* when the server's own first waited, 0: it has not */
    bool marked, over;
    char running; /* set in `send`, `throw` and `close`, which alone change what is above */
} Step;

/* Say what has failed here and go on; return -1 where that is none of our errors. */
static int said(void) { return report_error(held[REPORT], "stagetrace.instrumentation.asgi.request"); }

/* Call a method, or where that is NULL the object itself; return -1 if that raises. The call may replace what a Passing
 * refers to, so the object and the arguments are kept until it returns. */
static int tell(PyObject *object, PyObject *method, PyObject *first, PyObject *second) {
    Py_XINCREF(object);
    Py_XINCREF(first);
    Py_XINCREF(second);
    PyObject *done = method ? PyObject_CallMethodObjArgs(object, method, first, second, NULL)
                            : PyObject_CallFunctionObjArgs(object, first, second, NULL);
    Py_XDECREF(object);
    Py_XDECREF(first);
    Py_XDECREF(second);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Return whether a message says yes to a question that it may leave out; -1 with an exception. */
static int says(PyObject *message, int question) {
    if (!PyDict_Check(message)) {
        PyErr_SetString(PyExc_TypeError, "a message is a dict");
        return -1;
    }
    PyObject *answer = PyDict_GetItemWithError(message, held[question]);
    if (answer == NULL) return PyErr_Occurred() ? -1 : 0;
    Py_INCREF(answer);
    int result = PyObject_IsTrue(answer);
    Py_DECREF(answer);
    return result;
}

static bool is_kind(PyObject *kind, const char *text) {
    return PyUnicode_Check(kind) && PyUnicode_CompareWithASCIIString(kind, text) == 0;
}

/* Return whether a message is of this type; -1 with an exception. */
static int is_of(PyObject *message, const char *text) {
    PyObject *kind = PyObject_GetItem(message, held[TYPE]);
    if (kind == NULL) return -1;
    bool result = is_kind(kind, text);
    Py_DECREF(kind);
    return result;
}

/* --- before, around and after the server's own */

/* Look at what is to be sent and mark its beginning; set whether it is an answer's head. */
static int begin_sending(Passing *passing, PyObject *message, bool *is_head) {
    int head = is_of(message, "http.response.start");
    if (head < 0) return -1;
    *is_head = head;
    if (head && passing->answered != NULL) {
        int trailers = says(message, TRAILERS);
        if (trailers < 0) return -1;
        passing->has_trailers = trailers;
        if (tell(passing->answered, held[BEGIN_ANSWER], message, NULL) < 0) return -1;
    }
    return tell(passing->timeline, held[ENTER], held[SENDING], NULL);
}

/* Put the request's context aside. */
static int step_out(Step *step) {
    PyObject *timeline = PyObject_CallObject(held[CURRENT_GET], NULL);
    PyObject *context = timeline ? PyObject_CallObject(held[CONTEXT_GET], NULL) : NULL;
    if (context == NULL) {
        Py_XDECREF(timeline);
        return -1;
    }
    step->timeline = timeline;
    step->context = context;
    if (tell(held[CURRENT_SET], NULL, Py_None, NULL) < 0) return -1;
    return tell(held[CONTEXT_SET], NULL, held[NO_CONTEXT], NULL);
}

/* Take it up again, if it was put aside; an exception that is set stays. */
static void step_in(Step *step) {
    if (step->context == NULL) return;
    PyObject *type, *error, *traceback, *timeline = step->timeline, *context = step->context;
    PyErr_Fetch(&type, &error, &traceback);
    step->timeline = step->context = NULL;
    if (tell(held[CURRENT_SET], NULL, timeline, NULL) < 0) said();
    if (tell(held[CONTEXT_SET], NULL, context, NULL) < 0) said();
    Py_DECREF(timeline);
    Py_DECREF(context);
    PyErr_Restore(type, error, traceback);
}

/* Begin: mark it, and call the server's own. */
static int begin(Step *step) {
    Passing *passing = step->passing;
    PyObject *message = step->message;
    bool is_head = false;
    int result = 0;
    if (message != NULL) {
        step->marked = true;
        result = begin_sending(passing, message, &is_head);
    } else if (!passing->complete) {
        step->marked = true;
        result = tell(passing->timeline, held[ENTER], held[RECEIVING], NULL);
    }
    if (result < 0 && said() < 0) return -1;
    if (message != NULL && !is_head && step_out(step) < 0 && said() < 0) return -1;
    PyObject *pass = passing->pass;
    Py_XINCREF(pass);
    PyObject *awaitable = PyObject_CallFunctionObjArgs(pass, message, NULL);
    Py_XDECREF(pass);
    if (awaitable == NULL) return -1;
    if ((PyObject *)Py_TYPE(awaitable) == held[COROUTINE]) {
        step->inner = awaitable;
    } else {
        step->inner = PyObject_CallMethodObjArgs(awaitable, held[AWAIT], NULL);
        Py_DECREF(awaitable);
    }
    return step->inner ? 0 : -1;
}

/* Return whether an answer is complete with this message; -1 with an exception. */
static int is_whole(Passing *passing, PyObject *message) {
    PyObject *kind = PyObject_GetItem(message, held[TYPE]);
    if (kind == NULL) return -1;
    int whole = 0;
    if (passing->has_trailers) {
        if (is_kind(kind, "http.response.trailers")) whole = !says(message, MORE_TRAILERS);
    } else if (is_kind(kind, "http.response.body") || is_kind(kind, "http.response.zerocopysend")) {
        whole = !says(message, MORE_BODY);
    } else {
        whole = is_kind(kind, "http.response.pathsend");
    }
    Py_DECREF(kind);
    return PyErr_Occurred() ? -1 : whole;
}

/* Let who wants to know look at what was sent. */
static int tell_of_sent(Passing *passing, PyObject *now, PyObject *message) {
    int whole = is_whole(passing, message);
    if (whole < 0) return -1;
    if (whole) return tell(passing->answered, held[END_ANSWER], now, message);
    int is_body = is_of(message, "http.response.body");
    return is_body > 0 ? tell(passing->answered, held[ADD_PIECE], now, message) : is_body;
}

static int note_sent(Passing *passing, PyObject *message) {
    PyObject *now = PyLong_FromLongLong(clock_ns(CLOCK_REALTIME));
    int result = now ? tell(passing->timeline, held[LEAVE], held[SENDING], now) : -1;
    if (result == 0 && passing->answered != NULL) result = tell_of_sent(passing, now, message);
    Py_XDECREF(now);
    return result;
}

/* Let who wants to know look at what was received, if that is a part of a body or says that the client has gone. */
static int tell_of_received(Passing *passing, PyObject *message) {
    if (passing->answered == NULL) return 0;
    int wanted = says(message, BODY);
    if (wanted == 0) wanted = is_of(message, "http.disconnect");
    return wanted > 0 ? tell(passing->answered, held[TAKE_IN], message, NULL) : wanted;
}

static int note_received(Passing *passing, PyObject *message) {
    if (tell(passing->timeline, held[LEAVE], held[RECEIVING], NULL) < 0) return -1;
    int more = says(message, MORE_BODY);
    if (more == 0) passing->complete = true;
    return more < 0 ? -1 : tell_of_received(passing, message);
}

/* Note since when a send or receive has waited: for the other side, or for the loop that comes back to it late. */
static int note_wait(Step *step) {
    PyObject *since = PyLong_FromLongLong(step->waits_since);
    int result = since ? tell(step->passing->timeline, held[WAITED], step->message ? held[SENDING] : held[RECEIVING], since)
                       : -1;
    Py_XDECREF(since);
    return result;
}

/* Note the end of a send or receive, with the server's result or NULL. */
static int note_end(Step *step, PyObject *result) {
    Passing *passing = step->passing;
    if (result == NULL) return tell(passing->timeline, held[LEAVE], step->message ? held[SENDING] : held[RECEIVING], NULL);
    if (!step->marked) return tell_of_received(passing, result);
    return step->message ? note_sent(passing, step->message) : note_received(passing, result);
}

/* End, with the server's result, or with the exception that is set if that is NULL; -1: with another exception. */
static int end(Step *step, PyObject *result) {
    Passing *passing = step->passing;
    PyObject *message = step->message, *type, *error, *traceback;
    step->over = true;
    Py_CLEAR(step->inner);
    if (passing == NULL) return 0;
    step_in(step);
    if (!step->marked && result == NULL) return 0;
    /* As a server is to say that there is nobody to send to. */
    bool nobody = result == NULL && message && passing->answered && PyErr_ExceptionMatches(PyExc_OSError);
    PyErr_Fetch(&type, &error, &traceback);
    int noted = step->waits_since && note_wait(step) < 0 ? said() : 0;
    if (noted == 0) noted = note_end(step, result);
    if (noted == 0 && nobody) noted = tell(passing->answered, held[GO_AWAY], NULL, NULL);
    if (noted < 0) noted = said();
    if (noted == 0) {
        PyErr_Restore(type, error, traceback);
        return 0;
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return -1;
}

/* --- Step, as a coroutine */

/* Begin to run, and keep the step; return -1 where it runs already, in a caller of this or in another thread. */
static int begin_running(Step *step) {
    if (__atomic_exchange_n(&step->running, 1, __ATOMIC_ACQUIRE)) {
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
        return -1;
    }
    Py_INCREF(step);
    return 0;
}

static void end_running(Step *step) {
    __atomic_store_n(&step->running, 0, __ATOMIC_RELEASE);
    Py_DECREF(step);
}

/* Finish what `status` says of a turn of the server's awaitable. */
static PySendResult turned(Step *step, PySendResult status, PyObject **result) {
    if (status == PYGEN_NEXT) {
        if (step->passing != NULL && step->marked && !step->waits_since) step->waits_since = clock_ns(CLOCK_REALTIME);
        return status;
    }
    if (end(step, status == PYGEN_RETURN ? *result : NULL) == 0) return status;
    if (status == PYGEN_RETURN) Py_CLEAR(*result);
    return PYGEN_ERROR;
}

/* Begin a step of a request's work, at a time that is set; return -1 with an exception that is none of our errors. */
static int begin_work(Step *step, int64_t *began) {
    *began = clock_ns(CLOCK_REALTIME);
    PyObject *number = PyLong_FromLongLong(*began);
    PyObject *account = number ? PyObject_CallFunctionObjArgs(held[ACCOUNT], number, NULL) : NULL;
    int result = account ? PyObject_SetAttr(step->message, held[STEP_BEGUN], account) : -1;
    Py_XDECREF(number);
    Py_XDECREF(account);
    return result < 0 ? said() : 0;
}

/* Note such a step, if it was not short; an exception that is set stays. */
static void end_work(Step *step, int64_t began) {
    int64_t now = clock_ns(CLOCK_REALTIME);
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    int result;
    if (now - began < divided_ns) {
        result = PyObject_SetAttr(step->message, held[STEP_BEGUN], Py_None);
    } else {
        PyObject *done = PyObject_CallFunction(held[END_STEP], "LLO", (long long)began, (long long)now, step->message);
        result = done ? 0 : -1;
        Py_XDECREF(done);
    }
    if (result < 0) said();
    PyErr_Restore(type, error, traceback);
}

static PySendResult send_in(Step *step, PyObject *value, PyObject **result) {
    int64_t began = 0;
    if (step->over) return over(result);
    if (step->inner == NULL && begin(step) < 0) return turned(step, PYGEN_ERROR, result);
    if (step->passing == NULL && begin_work(step, &began) < 0) return turned(step, PYGEN_ERROR, result);
    PyObject *inner = step->inner;
    Py_INCREF(inner);
    PySendResult status = PyIter_Send(inner, value, result);
    if (began) end_work(step, began);
    status = turned(step, status, result);
    Py_DECREF(inner);
    return status;
}

static PySendResult advance(PyObject *self, PyObject *value, PyObject **result) {
    *result = NULL;
    if (begin_running((Step *)self) < 0) return PYGEN_ERROR;
    PySendResult status = send_in((Step *)self, value, result);
    end_running((Step *)self);
    return status;
}

static PyObject *send_value(PyObject *self, PyObject *value) {
    PyObject *result;
    PySendResult status = advance(self, value, &result);
    return as_method(status, result);
}

static PyObject *next_value(PyObject *self) { return send_value(self, Py_None); }

static PySendResult throw_in(Step *step, PyObject *args, PyObject **result) {
    PyObject *type, *error = NULL, *traceback = NULL;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &type, &error, &traceback)) return PYGEN_ERROR;
    if (step->over) return over(result);
    PyObject *inner = step->inner;
    Py_XINCREF(inner);
    PyObject *throw = inner ? PyObject_GetAttrString(inner, "throw") : NULL;
    Py_XDECREF(inner);
    if (throw == NULL) { /* not begun, or a future's iterator, which knows no more than to be given up */
        PyErr_Clear();
        if (PyExceptionInstance_Check(type)) PyErr_SetObject((PyObject *)Py_TYPE(type), type);
        else PyErr_SetObject(type, error ? error : Py_None);
        return turned(step, PYGEN_ERROR, result);
    }
    int64_t began = 0;
    if (step->passing == NULL && begin_work(step, &began) < 0) {
        Py_DECREF(throw);
        return turned(step, PYGEN_ERROR, result);
    }
    *result = PyObject_Call(throw, args, NULL);
    if (began) end_work(step, began);
    Py_DECREF(throw);
    PySendResult status = PYGEN_NEXT;
    if (*result == NULL) status = (*result = stopped()) ? PYGEN_RETURN : PYGEN_ERROR;
    return turned(step, status, result);
}

static PyObject *throw_value(PyObject *self, PyObject *args) {
    PyObject *result = NULL;
    if (begin_running((Step *)self) < 0) return NULL;
    PySendResult status = throw_in((Step *)self, args, &result);
    end_running((Step *)self);
    return as_method(status, result);
}

/* Close what has begun; return -1 if that raises. */
static int close_inner(Step *step) {
    if (step->over || step->inner == NULL) {
        step->over = true;
        return 0;
    }
    PyObject *inner = step->inner;
    Py_INCREF(inner);
    PyObject *close = PyObject_GetAttrString(inner, "close"), *done = close ? PyObject_CallObject(close, NULL) : NULL;
    Py_DECREF(inner);
    if (close == NULL) PyErr_Clear();
    Py_XDECREF(close);
    bool failed = close != NULL && done == NULL;
    Py_XDECREF(done);
    return end(step, NULL) < 0 || failed ? -1 : 0;
}

static PyObject *close_step(PyObject *self, PyObject *Py_UNUSED(none)) {
    if (begin_running((Step *)self) < 0) return NULL;
    int result = close_inner((Step *)self);
    end_running((Step *)self);
    if (result < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *itself(PyObject *self) {
    Py_INCREF(self);
    return self;
}

static PyObject *await_method(PyObject *self, PyObject *Py_UNUSED(none)) { return itself(self); }

static int traverse_step(PyObject *self, visitproc visit, void *arg) {
    Step *step = (Step *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(step->passing);
    Py_VISIT(step->message);
    Py_VISIT(step->inner);
    Py_VISIT(step->timeline);
    Py_VISIT(step->context);
    return 0;
}

static int clear_step(PyObject *self) {
    Step *step = (Step *)self;
    step->over = true;
    Py_CLEAR(step->passing);
    Py_CLEAR(step->message);
    Py_CLEAR(step->inner);
    Py_CLEAR(step->timeline);
    Py_CLEAR(step->context);
    return 0;
}

static void dealloc_step(PyObject *self) { free_object(self, clear_step); }

static PyMethodDef step_methods[] = {
    {"send", send_value, METH_O, NULL},
    {"throw", throw_value, METH_VARARGS, NULL},
    {"close", close_step, METH_NOARGS, NULL},
    {"__await__", await_method, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot step_slots[] = {
    {Py_tp_dealloc, dealloc_step}, {Py_tp_traverse, traverse_step}, {Py_tp_clear, clear_step},
    {Py_tp_methods, step_methods}, {Py_tp_iter, itself}, {Py_tp_iternext, next_value}, {Py_am_await, itself},
    {Py_am_send, advance}, {0, NULL},
};

/* --- Receive and Send */

static PyObject *step_of(PyObject *passing, PyObject *message) {
    PyTypeObject *type = (PyTypeObject *)held[STEP];
    Step *step = (Step *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (step == NULL) return NULL;
    Py_INCREF(passing);
    step->passing = (Passing *)passing;
    Py_XINCREF(message);
    step->message = message;
    return (PyObject *)step;
}

static PyObject *receive(PyObject *self, PyObject *args, PyObject *named) {
    static char *names[] = {NULL};
    return PyArg_ParseTupleAndKeywords(args, named, "", names) ? step_of(self, NULL) : NULL;
}

static PyObject *send(PyObject *self, PyObject *args, PyObject *named) {
    static char *names[] = {"message", NULL};
    PyObject *message;
    if (named == NULL && PyTuple_Size(args) == 1) return step_of(self, PyTuple_GetItem(args, 0));
    return PyArg_ParseTupleAndKeywords(args, named, "O", names, &message) ? step_of(self, message) : NULL;
}

static int init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(named)) {
    Passing *passing = (Passing *)self;
    PyObject *timeline, *pass, *answered = Py_None;
    if (!PyArg_UnpackTuple(args, "Receive or Send", 2, 3, &timeline, &pass, &answered)) return -1;
    PyObject *before[] = {passing->timeline, passing->pass, passing->answered};
    Py_INCREF(passing->timeline = timeline);
    Py_INCREF(passing->pass = pass);
    if (answered == Py_None) answered = NULL;
    Py_XINCREF(passing->answered = answered);
    for (int i = 0; i < 3; i++) Py_XDECREF(before[i]);
    return 0;
}

static int traverse_passing(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Passing *)self)->timeline);
    Py_VISIT(((Passing *)self)->pass);
    Py_VISIT(((Passing *)self)->answered);
    return 0;
}

static int clear_passing(PyObject *self) {
    Py_CLEAR(((Passing *)self)->timeline);
    Py_CLEAR(((Passing *)self)->pass);
    Py_CLEAR(((Passing *)self)->answered);
    return 0;
}

static void dealloc_passing(PyObject *self) { free_object(self, clear_passing); }

#define PASSING_SLOTS(call) {Py_tp_new, PyType_GenericNew}, {Py_tp_init, init}, {Py_tp_dealloc, dealloc_passing}, \
    {Py_tp_traverse, traverse_passing}, {Py_tp_clear, clear_passing}, {Py_tp_call, call}, {0, NULL}
static PyType_Slot receive_slots[] = {{Py_tp_doc, "Receives from the server, marked."}, PASSING_SLOTS(receive)};
static PyType_Slot send_slots[] = {{Py_tp_doc, "Sends by the server, marked."}, PASSING_SLOTS(send)};

static PyObject *stepped(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    if (given != 2 || (PyObject *)Py_TYPE(args[0]) != held[COROUTINE])
        return PyErr_Format(PyExc_TypeError, "stepped takes a coroutine and a request");
    PyTypeObject *type = (PyTypeObject *)held[STEP];
    Step *step = (Step *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (step == NULL) return NULL;
    Py_INCREF(step->inner = args[0]);
    Py_INCREF(step->message = args[1]);
    return (PyObject *)step;
}

/* --- the module */

static PyMethodDef functions[] = {
    {"stepped", (PyCFunction)(void (*)(void))stepped, METH_FASTCALL, "Await what a task does for a request; note its steps."},
    {NULL, NULL, 0, NULL},
};

#define FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC)
#define NAMED(name) "stagetrace.instrumentation._passing." name
static PyType_Spec step_spec = {NAMED("Step"), sizeof(Step), 0, FLAGS, step_slots};
static PyType_Spec receive_spec = {NAMED("Receive"), sizeof(Passing), 0, FLAGS, receive_slots};
static PyType_Spec send_spec = {NAMED("Send"), sizeof(Passing), 0, FLAGS, send_slots};

static PyObject *part_of(PyObject *owned, const char *name) {
    PyObject *found = owned ? PyObject_GetAttrString(owned, name) : NULL;
    Py_XDECREF(owned);
    return found;
}

/* Let asyncio and others take a Step for the coroutine that it stands for. */
static int register_step(void) {
    PyObject *coroutine = part_of(PyImport_ImportModule("collections.abc"), "Coroutine");
    PyObject *done = coroutine ? PyObject_CallMethod(coroutine, "register", "O", held[STEP]) : NULL;
    Py_XDECREF(done);
    Py_XDECREF(coroutine);
    return done ? 0 : -1;
}

static int fill(PyObject *module) {
    if (held[STEP] != NULL) {
        PyErr_SetString(PyExc_ImportError, "in use by another interpreter of this process");
        return -1;
    }
    if (import_all(held, WHERE, IMPORTED) < 0) return -1;
    held[CURRENT_GET] = part_of(held[CURRENT_GET], "get");
    held[CURRENT_SET] = part_of(held[CURRENT_SET], "set");
    if (held[CURRENT_GET] == NULL || held[CURRENT_SET] == NULL) return -1;
    divided_ns = PyLong_AsLongLong(held[DIVIDED]);
    if (divided_ns == -1 && PyErr_Occurred()) return -1;
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if ((held[WORDS[i].place] = PyUnicode_InternFromString(WORDS[i].text)) == NULL) return -1;
    PyObject *receive_type = PyType_FromSpec(&receive_spec), *send_type = PyType_FromSpec(&send_spec);
    if (receive_type == NULL || PyModule_AddObject(module, "Receive", receive_type) < 0) return -1;
    if (send_type == NULL || PyModule_AddObject(module, "Send", send_type) < 0) return -1;
    held[STEP] = PyType_FromSpec(&step_spec);
    return held[STEP] ? register_step() : -1;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#ifdef Py_GIL_DISABLED
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_passing", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__passing(void) { return PyModuleDef_Init(&definition); }
