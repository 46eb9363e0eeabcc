/* The stages that a request's marks make up: recording/tiler.py in C (docs/decisions/011).
 *
 * What it does and why is said where the reference is. Here are only requests of at most 127 events, whose stages have
 * been given out as no span's parent, so there is nothing to sum up and no context. Whatever else comes in raises.
 */
#include "encoder.h"

#define WIRE_OVERHEAD_NS 50000
enum { MAX_WIRE = 8, SHARE = 10 }; /* as in segments.py */

#define TILER "stagetrace.recording.tiler"
#define ENCODER "stagetrace.otlp.encode.span_encoder"
#define SEGMENTS "stagetrace.recording.segments"

static const char *const WHERE[TILING_HELD][2] = {
    {TILER, "INFERENCE"}, {TILER, "TRANSFORM"}, {TILER, "PREPARE"}, {TILER, "QUEUE"}, {TILER, "NETWORK_SEND"}, {TILER, "NETWORK_RECEIVE"},
    {TILER, "GAP"}, {TILER, "PREPROCESS"}, {TILER, "POSTPROCESS"}, {TILER, "HANDLER"}, {"stagetrace.recording.marks", "Mark"},
    {TILER, "NOTHING"}, {TILER, "UNRECOGNISED"}, {ENCODER, "ML_STAGE"}, {ENCODER, "_append_attributes"}, {ENCODER, "_trace_state"},
    {"opentelemetry.trace.span", "DEFAULT_TRACE_STATE"}, {TILER, "ML_MODEL_NAME"}, {TILER, "ML_MODEL_VERSION"},
    {SEGMENTS, "common"}, {SEGMENTS, "ML_STAGE_COALESCED"}, {SEGMENTS, "ML_STAGE_COALESCED_LONGEST_MS"},
};

/* Return the number of a name among the first `count`, or -1. */
static int find(PyObject *const *names, int count, PyObject *name) {
    for (int i = 0; i < count; i++)
        if (names[i] == name) return i;
    for (int i = 0; i < count; i++)
        if (PyUnicode_Compare(names[i], name) == 0) return i;
    return -1;
}

static int open_mark(Tiling *tiling, PyObject *mark) {
    PyObject *name = PyObject_GetAttrString(mark, "stage");
    if (name == NULL) return -1;
    if (!PyUnicode_CheckExact(name)) {
        Py_DECREF(name);
        return fail(PyExc_TypeError, "a stage's name is a str");
    }
    int stage = find(tiling->names, tiling->named, name);
    if (stage >= 0) Py_DECREF(name);
    else tiling->names[stage = tiling->named++] = name;
    tiling->marks[tiling->marked] = mark;
    tiling->mark_stages[tiling->marked++] = stage;
    return 0;
}

static void close_mark(Tiling *tiling, PyObject *mark) {
    int at = 0;
    while (at < tiling->marked && tiling->marks[at] != mark) at++;
    if (at == tiling->marked) return;
    for (tiling->marked--; at < tiling->marked; at++) {
        tiling->marks[at] = tiling->marks[at + 1];
        tiling->mark_stages[at] = tiling->mark_stages[at + 1];
    }
}

/* Return the stage that the open activities and marks make. */
static int stage_now(const Tiling *tiling) {
    if (tiling->marked) return tiling->mark_stages[tiling->marked - 1];
    int activity = 0;
    while (activity < ACTIVITIES && !tiling->counts[activity]) activity++;
    return activity; /* GAP comes after the activities */
}

static bool is_transform(int stage) { return stage == TRANSFORM || stage == PREPARE; }

/* Close the open segment and keep it. */
static void keep(Tiling *tiling) {
    int stage = tiling->open.stage;
    if (stage == GAP || (is_transform(stage) && !tiling->open.explicit)) tiling->pending[tiling->waiting++] = tiling->count;
    tiling->segments[tiling->count++] = tiling->open;
}

/* If what lies before a short gap is the same moving of a body over the wire, open that again. */
static bool reopen(Tiling *tiling, int stage) {
    if (tiling->count == 0) return false;
    const Segment *before = &tiling->segments[tiling->count - 1];
    if (before->stage != stage || before->explicit) return false;
    tiling->open = *before;
    tiling->count--;
    return true;
}

static void name_pending(Tiling *tiling, int stage, PyObject *attributes) {
    for (int i = 0; i < tiling->waiting; i++) {
        tiling->segments[tiling->pending[i]].stage = stage;
        tiling->segments[tiling->pending[i]].attributes = attributes;
    }
    tiling->waiting = 0;
}

/* Hold new attributes, NULL where they could not be made, as long as the tiling; return them borrowed. */
static PyObject *hold(Tiling *tiling, PyObject *attributes) {
    if (attributes == NULL) return NULL;
    bool done = (tiling->merged != NULL || (tiling->merged = PyList_New(0)) != NULL)
                && PyList_Append(tiling->merged, attributes) == 0;
    Py_DECREF(attributes);
    return done ? attributes : NULL;
}

/* Return, borrowed, both attributes; those in `over` win. */
static PyObject *lay_over(Tiling *tiling, PyObject *under, PyObject *over) {
    PyObject *both = PyDict_New();
    if (both != NULL && (PyDict_Update(both, under) < 0 || PyDict_Update(both, over) < 0)) Py_CLEAR(both);
    return hold(tiling, both);
}

/* Give the open segment attributes; those that it has win. */
static int add_attributes(Tiling *tiling, PyObject *attributes) {
    if (tiling->open.attributes != NULL) attributes = lay_over(tiling, attributes, tiling->open.attributes);
    if (attributes == NULL) return -1;
    tiling->open.attributes = attributes;
    return 0;
}

/* Take the model from what a person's mark says. */
static int take_model(Tiling *tiling, PyObject *mark, PyObject *attributes) {
    PyObject *all = PyDict_New(), *model = PyDict_New();
    if (all != NULL && PyDict_Update(all, attributes) < 0) Py_CLEAR(model);
    for (int key = MODEL_NAME; all != NULL && model != NULL && key <= MODEL_VERSION; key++) {
        PyObject *value = PyDict_GetItemWithError(all, tiling->held[key]);
        if (value == NULL ? PyErr_Occurred() != NULL : PyDict_SetItem(model, tiling->held[key], value) < 0) Py_CLEAR(model);
    }
    if (all == NULL) Py_CLEAR(model);
    Py_XDECREF(all);
    if ((model = hold(tiling, model)) == NULL) return -1;
    if (PyDict_Size(model) > 0) {
        tiling->model = model;
        tiling->modelled = mark;
    }
    return 0;
}

int read_time(PyObject *value, int64_t *time) {
    *time = PyLong_AsLongLong(value);
    return *time == -1 && PyErr_Occurred() ? -1 : 0;
}

/* Tiler.take, for one event. */
static int take(Tiling *tiling, PyObject *event) {
    if (!PyTuple_Check(event) || PyTuple_Size(event) != 4) return fail(PyExc_TypeError, "an event is a tuple of four");
    PyObject *what = PyTuple_GetItem(event, 2), *attributes = PyTuple_GetItem(event, 3);
    int64_t now;
    long kind = PyLong_AsLong(PyTuple_GetItem(event, 1));
    if ((kind == -1 && PyErr_Occurred()) || read_time(PyTuple_GetItem(event, 0), &now) < 0) return -1;
    int activity = -1;
    if ((kind == BEGIN || kind == END) && PyUnicode_CheckExact(what)) activity = find(tiling->names, ACTIVITIES, what);
    bool is_mark = (kind == BEGIN_MARK || kind == END_MARK) && (PyObject *)Py_TYPE(what) == tiling->held[MARK];
    if (activity < 0 && !is_mark) return fail(PyExc_ValueError, "neither an activity nor a mark begins or ends");
    if (kind == END && !tiling->counts[activity]) return 0;
    if (activity >= 0) tiling->counts[activity] += kind == BEGIN ? 1 : -1;
    if (kind == BEGIN_MARK && open_mark(tiling, what) < 0) return -1;
    if (kind == END_MARK) close_mark(tiling, what);

    Segment *open = &tiling->open;
    int stage = stage_now(tiling);
    bool explicit = tiling->marked > 0;
    if (stage != open->stage || explicit != open->explicit) {
        if (now <= open->start) { /* at once, or the wall clock stepped back */
            now = open->start;
        } else if (now - open->start < WIRE_OVERHEAD_NS && open->stage == GAP && (stage == SEND || stage == RECEIVE)
                   && reopen(tiling, stage)) {
            return 0;
        } else {
            open->end = now;
            keep(tiling);
        }
        *open = (Segment){.start = now, .end = now, .stage = stage, .explicit = explicit};
        if (stage == INFERENCE) {
            tiling->inferred = true;
            name_pending(tiling, PREPROCESS, NULL);
        }
    }
    int any = attributes == Py_None ? 0 : PyObject_IsTrue(attributes);
    if (any <= 0) return any;
    if (activity == INFERENCE && tiling->model == NULL) {
        tiling->model = attributes;
    } else if (activity == INFERENCE && tiling->marked && tiling->marks[tiling->marked - 1] == tiling->modelled) {
        if ((tiling->model = lay_over(tiling, attributes, tiling->model)) == NULL) return -1;
    } else if (kind == BEGIN_MARK && stage == INFERENCE && tiling->model == NULL) {
        if (take_model(tiling, what, attributes) < 0) return -1;
    }
    return kind == BEGIN_MARK || stage == activity ? add_attributes(tiling, attributes) : 0;
}

/* Name what no later inference will settle. */
static void name_rest(Tiling *tiling) {
    if (tiling->inferred) {
        name_pending(tiling, POSTPROCESS, NULL);
        return;
    }
    bool is_transformed = false;
    int64_t unmarked = 0;
    int name = POSTPROCESS;
    PyObject *model = NULL;
    for (int i = tiling->waiting - 1; i >= 0; i--) {
        Segment *segment = &tiling->segments[tiling->pending[i]];
        int64_t took = segment->end - segment->start;
        if (segment->stage == GAP) unmarked += took;
        else is_transformed = true;
        if (segment->stage == TRANSFORM && took >= unmarked) {
            segment->stage = INFERENCE;
            name = PREPROCESS;
            if (segment->attributes != NULL) model = segment->attributes;
        } else {
            segment->stage = name;
            segment->attributes = NULL;
        }
    }
    if (name == POSTPROCESS) {
        if (is_transformed && tiling->model == NULL) model = tiling->held[UNRECOGNISED];
        name_pending(tiling, HANDLER, model);
    }
    if (tiling->model == NULL) tiling->model = model;
}

/* Tiler.close: leave the stages that tile [start, end) in `segments`, and return how many they are. */
static int close_tiling(Tiling *tiling, int64_t start, int64_t now, int64_t end) {
    Segment *open = &tiling->open, *last = NULL;
    if (open->stage == GAP && (now < open->start || now - open->start < WIRE_OVERHEAD_NS)) reopen(tiling, SEND);
    open->end = now > open->start ? now : open->start;
    keep(tiling);
    name_rest(tiling);
    int tiles = 0;
    if (end <= start) return tiles;
    int64_t at = start;
    for (int i = 0; i < tiling->count; i++) {
        Segment *segment = &tiling->segments[i];
        int64_t until = segment->end < end ? segment->end : end;
        if (until <= at) continue;
        if (last != NULL && last->stage == segment->stage && !last->explicit && !segment->explicit) {
            if (last->attributes == NULL) last->attributes = segment->attributes;
        } else {
            last = &tiling->segments[tiles++];
            *last = *segment;
            last->start = at;
        }
        last->end = at = until;
    }
    if (last == NULL) {
        last = &tiling->segments[tiles++];
        *last = (Segment){.start = start, .stage = HANDLER};
    }
    last->end = end;
    return tiles;
}

/* Let a segment have the attributes alone that others have as well. */
static int keep_common(Tiling *tiling, Segment *group, PyObject *attributes) {
    if (group->attributes == attributes) return 0;
    if (group->attributes == NULL || attributes == NULL) {
        group->attributes = NULL;
        return 0;
    }
    if (tiling->merged == NULL && (tiling->merged = PyList_New(0)) == NULL) return -1;
    PyObject *both = PyObject_CallFunctionObjArgs(tiling->held[COMMON], group->attributes, attributes, NULL);
    int any = both && PyList_Append(tiling->merged, both) == 0 ? PyObject_IsTrue(both) : -1;
    Py_XDECREF(both);
    group->attributes = any > 0 ? both : NULL; /* which the list holds */
    return any < 0 ? -1 : 0;
}

/* Put the segments [from, to), one for each stage if any has more than one, at `into`; return what comes after, or -1. */
static int sum_up(Tiling *tiling, int from, int to, int into) {
    Segment groups[MAX_SEGMENTS];
    int count = 0;
    for (int i = from; i < to; i++) {
        const Segment *one = &tiling->segments[i];
        int64_t took = one->end - one->start;
        int at = 0;
        while (at < count && (groups[at].stage != one->stage || groups[at].explicit != one->explicit)) at++;
        if (at == count) {
            groups[count] = *one;
            groups[count].end = groups[count].longest = took; /* its length, until it is laid in its place */
            groups[count++].visits = 1;
            continue;
        }
        groups[at].end += took;
        groups[at].visits++;
        if (took > groups[at].longest) groups[at].longest = took;
        if (keep_common(tiling, &groups[at], one->attributes) < 0) return -1;
    }
    Segment *laid = &tiling->segments[into];
    if (count == to - from) {
        memmove(laid, &tiling->segments[from], (size_t)count * sizeof *laid);
        return into + count;
    }
    int64_t at = tiling->segments[from].start;
    for (int i = 0; i < count; i++) {
        laid[i] = groups[i];
        laid[i].start = at;
        at = laid[i].end = at + groups[i].end;
    }
    return into + count;
}

/* `coalesced` of segments.py, for so few that only the wire counts; return how many are left. `cuts` ends with 0. */
static int coalesce(Tiling *tiling, int count, const int64_t *cuts) {
    if (count <= MAX_WIRE) return count;
    Segment *segments = tiling->segments;
    int wire[ACTIVITIES] = {0};
    for (int i = 0; i < count; i++)
        if (segments[i].stage < ACTIVITIES) wire[segments[i].stage]++;
    int stage = wire[SEND] > MAX_WIRE ? SEND : RECEIVE, first = 0;
    if (wire[stage] <= MAX_WIRE) return count;
    while (segments[first].stage != stage) first++;
    int64_t whole = (segments[count - 1].end - segments[0].start) / SHARE, most = whole > 1 ? whole : 1;
    int into = first, run = first; /* [run, i) is a run that is not laid yet */
    for (int i = first; i < count; i++) {
        Segment one = segments[i];
        bool is_cut = false;
        for (; *cuts && one.start >= *cuts; cuts++) is_cut = true;
        bool alone = one.end - one.start >= most || (one.start < *cuts && *cuts < one.end);
        if (is_cut || alone) {
            if ((into = sum_up(tiling, run, i, into)) < 0) return -1;
            run = i;
        }
        if (alone) {
            segments[into++] = one;
            run = i + 1;
        }
    }
    return sum_up(tiling, run, count, into);
}

/* Begin a tiling of [times[0], times[2]), which `release` ends, and do it: `events` is a list, and times[1] is when the
   last of them is over; `cuts` as in `coalesce`. Return the number of stages. */
int tile(Tiling *tiling, PyObject *const *held, PyObject *events, const int64_t *times, const int64_t *cuts) {
    memset(tiling, 0, offsetof(Tiling, segments));
    tiling->held = held;
    memcpy(tiling->names, tiling->held, KNOWN * sizeof *tiling->names);
    tiling->named = KNOWN;
    tiling->open = (Segment){.start = times[0], .end = times[0], .stage = GAP};
    tiling->events = PyList_AsTuple(events); /* another thread may still append */
    if (tiling->events == NULL) return -1;
    Py_ssize_t noted = PyTuple_Size(tiling->events);
    if (noted > MAX_EVENTS) return fail(PyExc_ValueError, "too many events");
    for (Py_ssize_t i = 0; i < noted; i++)
        if (take(tiling, PyTuple_GetItem(tiling->events, i)) < 0) return -1;
    return coalesce(tiling, close_tiling(tiling, times[0], times[1], times[2]), cuts);
}

void release_tiling(Tiling *tiling) {
    Py_XDECREF(tiling->events);
    Py_XDECREF(tiling->merged);
    while (tiling->named > KNOWN) Py_DECREF(tiling->names[--tiling->named]);
}

int read_times(int64_t *times, PyObject *const *args, int number) {
    for (int i = 0; i < number; i++)
        if (read_time(args[i], &times[i]) < 0) return -1;
    /* Else no difference of times, none of which counts before this one, overflows. */
    return times[0] < 0 ? fail(PyExc_OverflowError, "a time before 1970") : 0;
}

int read_cuts(PyObject *given, int64_t *cuts) {
    Py_ssize_t count = PyTuple_Check(given) ? PyTuple_Size(given) : -1;
    if (count < 0 || count > MAX_CUTS) return fail(PyExc_TypeError, "cuts are a tuple of at most three int");
    for (Py_ssize_t i = 0; i < count; i++)
        if (read_time(PyTuple_GetItem(given, i), &cuts[i]) < 0) return -1;
    cuts[count] = 0;
    return 0;
}

/* Fill what a Tiling holds. */
int read_tiling_held(PyObject **held) { return import_all(held, WHERE, TILING_HELD); }
