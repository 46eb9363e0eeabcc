/* What `_ending.c` knows of one end, and how it looks at Python's objects. */
#ifndef STAGETRACE_ENDING_H
#define STAGETRACE_ENDING_H

#include "../native.h"
#include "../otlp/spans.h"
#include "../recording/marks.h"

/* After what a Tiling holds. Of the one interpreter that has imported this; another one takes the reference. */
enum {
    IDENTITY = HELD, CONTEXT, FLAGS, GETRANDBITS, BLOCK, POLICY, SENDER, SCOPE, REPORT, NO_MARK, GOOD, MAX_ROUTES, ENOUGH,
    FROM_EACH, LEARNED_AFTER, BIG, MARKS, PROBABILITY, MAX_COUNTED, IMPORTED, BITS_128 = IMPORTED, BITS_64, NO_ROUTE, ONE, ALL
};
static PyObject *held[ALL];

#define RECORDER "stagetrace.sla.entry_recorder"
#define USUAL "stagetrace.sla.baseline"
static const char *const FROM[IMPORTED - HELD][2] = {
    {"stagetrace.recording.entry", "Identity"}, {"opentelemetry.trace", "SpanContext"}, {RECORDER, "_FLAGS"},
    {RECORDER, "getrandbits"}, {ENCODER, "Block"}, {"stagetrace.sla.policy", "Policy"},
    {"stagetrace.otlp.export.batch_processor", "EncodingSpanProcessor"}, {RECORDER, "SCOPE"}, {"stagetrace.guard", "report"},
    {RECORDER, "NO_BLOCK"}, {"stagetrace.sla.verdict", "GOOD"}, {USUAL, "MAX_ROUTES"}, {USUAL, "ENOUGH"},
    {USUAL, "LEARNED_FROM_EACH"}, {USUAL, "LEARNED_AFTER_NS"}, {"stagetrace.otlp.export.batch_processor", "_BIG"},
    {"stagetrace.recording._marks", "Marks"}, {"stagetrace.semconv", "SLA_SAMPLING_PROBABILITY"},
    {"stagetrace.sla.processor", "MAX_COUNTED"},
};

#define NAMES(X) \
    X(_processor) X(_senders) X(_provider) X(_bound) X(_draws) X(_probability) X(_unbroken) X(_rests) X(resource) X(put) X(has_others) \
    X(policy) X(learned) X(counter) X(_found) X(excludes) X(within_ns) X(name) X(_seen) X(_wanted_at) X(_counts) X(_lock) X(acquire) \
    X(locked) X(release) X(_start) X(identity) X(parent_context) X(describe) X(failed) X(encoded) X(_limit) X(end_time) \
    X(served) X(_waiting) X(_known) X(_incoming) X(append) X(_wake_at) X(_started) X(was_put)
enum { NAMES(PLACE) NAMED };
static const char *const WORDS[NAMED] = {NAMES(WORD)};
static PyObject *names[NAMED];

/* How far a step got: -1 with an exception. */
enum { FAILED = -1, NOT_HERE, GO_ON, DROPPED };
enum { MOST_OWNED = 64, QUEUE_HEAD = 9 };

/* One end. All but the last three are borrowed, from the arguments or from `owned`. */
typedef struct {
    PyObject *recorder, *entry, *processor;
    Marks *marks;       /* the entry's */
    PyObject *route;    /* method and route */
    PyObject *verdict;  /* name of the objective and word, NULL without one */
    PyObject *identity, *rest, *client, *attributes, *seen;
    int64_t times[3], seen_before;
    PyObject *owned[MOST_OWNED];
    int count;
} Ending;

/* Own what is NULL or a new reference, until `let_go`; return it. */
static PyObject *own(Ending *ending, PyObject *object) {
    if (object == NULL) return NULL;
    if (ending->count == MOST_OWNED) {
        Py_DECREF(object);
        fail(PyExc_RuntimeError, "too much looked at");
        return NULL;
    }
    return ending->owned[ending->count++] = object;
}

static PyObject *own_too(Ending *ending, PyObject *borrowed) {
    Py_XINCREF(borrowed);
    return own(ending, borrowed);
}

/* Let go of all but the first `kept`. */
static void let_go(Ending *ending, int kept) {
    while (ending->count > kept) Py_DECREF(ending->owned[--ending->count]);
}

static PyObject *look(Ending *ending, PyObject *object, int name) {
    return object ? own(ending, PyObject_GetAttr(object, names[name])) : NULL;
}

/* Return whether an attribute is this very object. */
static int is(PyObject *object, int name, PyObject *expected) {
    PyObject *found = PyObject_GetAttr(object, names[name]);
    if (found == NULL) return FAILED;
    Py_DECREF(found);
    return found == expected;
}

static int call(PyObject *object, int method, PyObject *argument) {
    PyObject *done = object ? PyObject_CallMethodObjArgs(object, names[method], argument, NULL) : NULL;
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Say what has failed where nothing can be left to the reference any more; return -1 where that is no error of ours. */
static int said(void) { return report_error(held[REPORT], "stagetrace.sla._ending"); }

/* Take a lock if it is free, or, `wait`, once it is. */
static int lock(PyObject *which, bool wait) {
    PyObject *done = PyObject_CallMethodObjArgs(which, names[N_acquire], wait ? Py_True : Py_False, NULL);
    Py_XDECREF(done);
    return done ? done == Py_True : FAILED;
}

/* Return whether somebody has a lock. If nobody has, nobody will before Python code runs again. */
static int is_locked(PyObject *which) {
    PyObject *locked = PyObject_CallMethodObjArgs(which, names[N_locked], NULL);
    int result = locked ? PyObject_IsTrue(locked) : FAILED;
    Py_XDECREF(locked);
    return result;
}

/* Give it back; an exception that is set stays. */
static void unlock(PyObject *which) {
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    if (call(which, N_release, NULL) < 0) said();
    PyErr_Restore(type, error, traceback);
}

#endif
