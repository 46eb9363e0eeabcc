/* The stages that a request's marks make up: request/tiler.py and segments.py in C (docs/decisions/011). */
#include "record.h"

#define WIRE_OVERHEAD_NS 50000

#define SEMCONV "stagetrace.semconv"
#define SEGMENTS "stagetrace.request.stages"

PyObject *known_stages[KNOWN];
static const char *const STAGES[KNOWN][2] = {
    {SEMCONV, "INFERENCE"}, {SEMCONV, "POSTPROCESS"}, {SEMCONV, "TRANSFORM"}, {SEMCONV, "PREPARE"}, {SEMCONV, "QUEUE"},
    {SEMCONV, "NETWORK_SEND"}, {SEMCONV, "NETWORK_RECEIVE"}, {SEGMENTS, "GAP"}, {SEMCONV, "PREPROCESS"},
    {SEMCONV, "HANDLER"}, {SEGMENTS, "OTHER"},
};

enum { UNRECOGNISED, MODEL_NAME, MODEL_VERSION, SEGMENT, HELD };
static PyObject *held[HELD];
static const char *const WHERE[HELD][2] = {
    {"stagetrace.request.tiler", "UNRECOGNISED"}, {SEMCONV, "ML_MODEL_NAME"}, {SEMCONV, "ML_MODEL_VERSION"},
    {SEGMENTS, "Segment"},
};

int fill_tiling(void) {
    if (import_all(known_stages, STAGES, KNOWN) < 0 || fill_coalescing() < 0) return -1;
    return import_all(held, WHERE, HELD);
}

void set_object(PyObject **place, PyObject *object) {
    PyObject *before = *place;
    *place = Py_XNewRef(object);
    Py_XDECREF(before);
}

/* Return an array with room for one more than `count`, or NULL. */
static void *with_room(void *items, int count, int *room, size_t size) {
    if (count < *room) return items;
    int wanted = *room ? 2 * *room : 16;
    void *more = PyMem_Realloc(items, (size_t)wanted * size);
    if (more == NULL) PyErr_NoMemory();
    else *room = wanted;
    return more;
}

void let_go_segments(Segment *segments, int count) {
    for (int i = 0; i < count; i++) {
        Py_CLEAR(segments[i].attributes);
        Py_CLEAR(segments[i].context);
        Py_CLEAR(segments[i].link);
    }
}

void free_segments(Segment *segments, int count) {
    let_go_segments(segments, count);
    PyMem_Free(segments);
}

Tiling *new_tiling(int64_t start, int limit) {
    Tiling *tiling = PyMem_Calloc(1, sizeof *tiling);
    if (tiling == NULL) PyErr_NoMemory();
    if (tiling == NULL || start < 0) {
        /* Else no difference of times, none of which counts before this one, overflows. */
        if (tiling != NULL) fail(PyExc_OverflowError, "a time before 1970");
        PyMem_Free(tiling);
        return NULL;
    }
    tiling->open = (Segment){.start = start, .end = start, .stage = GAP};
    tiling->shorten_at = limit;
    return tiling;
}

void free_tiling(Tiling *tiling) {
    if (tiling == NULL) return;
    free_segments(tiling->segments, tiling->count);
    let_go_segments(&tiling->open, 1);
    for (int i = 0; i < tiling->named; i++) Py_DECREF(tiling->names[i]);
    for (int i = 0; i < tiling->marked; i++) Py_DECREF(tiling->marks[i].mark);
    Py_XDECREF(tiling->model);
    Py_XDECREF(tiling->modelled);
    PyMem_Free(tiling->names);
    PyMem_Free(tiling->marks);
    PyMem_Free(tiling);
}

int traverse_tiling(const Tiling *tiling, visitproc visit, void *arg) {
    for (int i = 0; tiling != NULL && i <= tiling->count; i++) {
        const Segment *segment = i < tiling->count ? &tiling->segments[i] : &tiling->open;
        Py_VISIT(segment->attributes);
        Py_VISIT(segment->context);
        Py_VISIT(segment->link);
    }
    for (int i = 0; tiling != NULL && i < tiling->marked; i++) Py_VISIT(tiling->marks[i].mark);
    if (tiling != NULL) Py_VISIT(tiling->model);
    if (tiling != NULL) Py_VISIT(tiling->modelled);
    return 0;
}

PyObject *stage_name(const Tiling *tiling, int stage) {
    return stage < KNOWN ? known_stages[stage] : tiling->names[stage - KNOWN];
}

/* Return the number of a name, which may be new, or -1. */
static int number_of(Tiling *tiling, PyObject *name) {
    int count = KNOWN + tiling->named;
    for (int i = 0; i < count; i++)
        if (stage_name(tiling, i) == name) return i;
    for (int i = 0; i < count; i++)
        if (PyUnicode_Compare(stage_name(tiling, i), name) == 0) return i;
    PyObject **names = with_room(tiling->names, tiling->named, &tiling->name_room, sizeof *names);
    if (names == NULL) return -1;
    tiling->names = names;
    names[tiling->named++] = Py_NewRef(name);
    return count;
}

static int open_mark(Tiling *tiling, Mark *mark) {
    if (mark->stage == NULL) return fail(PyExc_AttributeError, "a mark without a stage");
    PyObject *name = PyUnicode_FromObject(mark->stage); /* an exact str */
    int stage = name ? number_of(tiling, name) : -1;
    Py_XDECREF(name);
    struct OpenMark *marks = stage < 0 ? NULL : with_room(tiling->marks, tiling->marked, &tiling->mark_room, sizeof *marks);
    if (marks == NULL) return -1;
    tiling->marks = marks;
    Py_INCREF(mark);
    marks[tiling->marked++] = (struct OpenMark){mark, stage};
    return 0;
}

static void close_mark(Tiling *tiling, Mark *mark) {
    struct OpenMark *marks = tiling->marks;
    int at = 0, last = tiling->marked - 1;
    if (last >= 0 && marks[last].mark == mark) at = last;
    while (at <= last && marks[at].mark != mark) at++;
    if (at > last) return;
    memmove(&marks[at], &marks[at + 1], (size_t)(last - at) * sizeof *marks);
    tiling->marked--;
    Py_DECREF(mark);
}

/* Return the stage that the open activities and marks make. */
static int stage_now(const Tiling *tiling) {
    if (tiling->marked) return tiling->marks[tiling->marked - 1].stage;
    int activity = 0;
    while (activity < ACTIVITIES && !tiling->counts[activity]) activity++;
    return activity; /* GAP comes after the activities */
}

bool is_transform(int stage) { return stage == TRANSFORM || stage == PREPARE; }

/* Return whether a segment is a gap or a transform that a later event names. */
static bool is_unnamed(const Segment *segment) {
    return segment->stage == GAP || (is_transform(segment->stage) && !segment->explicit);
}

/* Close the open segment and keep it. */
static int keep(Tiling *tiling) {
    Segment *segments = with_room(tiling->segments, tiling->count, &tiling->segment_room, sizeof *segments);
    if (segments == NULL) return -1;
    tiling->segments = segments;
    segments[tiling->count++] = tiling->open;
    if (tiling->open.context != NULL) tiling->given++;
    tiling->open.attributes = tiling->open.context = tiling->open.link = NULL;
    return 0;
}

/* If what lies before a short gap is the same moving of a body over the wire, open that again. */
static bool reopen(Tiling *tiling, int stage) {
    const Segment *before = tiling->count ? &tiling->segments[tiling->count - 1] : NULL;
    if (before == NULL || before->stage != stage || before->explicit || before->visits || tiling->open.context != NULL)
        return false;
    let_go_segments(&tiling->open, 1);
    tiling->open = *before;
    if (before->context != NULL) tiling->given--;
    if (tiling->settled > --tiling->count) tiling->settled = tiling->count;
    return true;
}

static void name_pending(Tiling *tiling, int stage, PyObject *attributes) {
    for (; tiling->settled < tiling->count; tiling->settled++) {
        Segment *segment = &tiling->segments[tiling->settled];
        if (!is_unnamed(segment)) continue;
        segment->stage = stage;
        set_object(&segment->attributes, attributes);
    }
}

/* Return both attributes, of which those in `over` win, or NULL. */
static PyObject *lay_over(PyObject *under, PyObject *over) {
    PyObject *both = PyDict_New();
    if (both != NULL && (PyDict_Update(both, under) < 0 || PyDict_Update(both, over) < 0)) Py_CLEAR(both);
    return both;
}

/* Let attributes be what these and `attributes` say, those that there are already winning. */
static int add_under(PyObject **place, PyObject *attributes) {
    PyObject *both = *place ? lay_over(attributes, *place) : Py_NewRef(attributes);
    if (both == NULL) return -1;
    set_object(place, both);
    Py_DECREF(both);
    return 0;
}

/* Take the model from what a person's mark says. */
static int take_model(Tiling *tiling, Mark *mark, PyObject *attributes) {
    PyObject *all = PyDict_New(), *model = PyDict_New();
    bool done = all != NULL && model != NULL && PyDict_Update(all, attributes) == 0;
    for (int key = MODEL_NAME; done && key <= MODEL_VERSION; key++) {
        PyObject *value = PyDict_GetItemWithError(all, held[key]);
        done = value == NULL ? !PyErr_Occurred() : PyDict_SetItem(model, held[key], value) == 0;
    }
    if (done && PyDict_Size(model) > 0) {
        set_object(&tiling->model, model);
        set_object(&tiling->modelled, (PyObject *)mark);
    }
    Py_XDECREF(all);
    Py_XDECREF(model);
    return done ? 0 : -1;
}

/* Take what an event says of the open segment, and of the model. */
static int take_attributes(Tiling *tiling, const Event *event) {
    PyObject *attributes = event->attributes;
    int any = attributes == NULL ? 0 : PyObject_IsTrue(attributes), stage = tiling->open.stage;
    if (any <= 0) return any;
    bool begins = event->kind == BEGIN_MARK, is_inference = event->mark == NULL && event->activity == INFERENCE;
    if (begins || (event->mark == NULL && event->activity == stage))
        if (add_under(&tiling->open.attributes, attributes) < 0) return -1;
    bool is_modelled = tiling->marked && (PyObject *)tiling->marks[tiling->marked - 1].mark == tiling->modelled;
    if (is_inference && (tiling->model == NULL || is_modelled)) return add_under(&tiling->model, attributes);
    return begins && stage == INFERENCE && tiling->model == NULL ? take_model(tiling, event->mark, attributes) : 0;
}

/* Tiler.take, for one event. */
int take(Tiling *tiling, const Event *event) {
    int64_t now = event->at;
    if (event->kind == END && !tiling->counts[event->activity]) return 0;
    if (event->mark == NULL) tiling->counts[event->activity] += event->kind == BEGIN ? 1 : -1;
    else if (event->kind == END_MARK) close_mark(tiling, event->mark);
    else if (open_mark(tiling, event->mark) < 0) return -1;

    Segment *open = &tiling->open;
    int stage = stage_now(tiling);
    bool explicit = tiling->marked > 0;
    if (stage != open->stage || explicit != open->explicit) {
        if (now <= open->start) { /* at once, or the wall clock stepped back */
            now = open->end = open->start;
            if (open->context != NULL && keep(tiling) < 0) return -1;
        } else if (now - open->start < WIRE_OVERHEAD_NS && open->stage == GAP && (stage == SEND || stage == RECEIVE)
                   && reopen(tiling, stage)) {
            return 0;
        } else {
            open->end = now;
            if (keep(tiling) < 0) return -1;
        }
        let_go_segments(open, 1);
        *open = (Segment){.start = now, .end = now, .stage = stage, .explicit = explicit};
        if (stage == INFERENCE) {
            tiling->inferred = true;
            name_pending(tiling, PREPROCESS, NULL);
        } else if (stage == POSTPROCESS && tiling->inferred && !explicit) {
            name_pending(tiling, POSTPROCESS, NULL);
        }
    }
    if (event->kind == BEGIN_MARK && (event->mark->context != NULL || event->mark->link != NULL)) {
        if (open->context == NULL) open->context = Py_XNewRef(event->mark->context);
        set_object(&open->link, event->mark->link);
    }
    return take_attributes(tiling, event);
}

/* Name what no later inference will settle. */
static void name_rest(Tiling *tiling) {
    if (tiling->inferred) {
        name_pending(tiling, POSTPROCESS, NULL);
        return;
    }
    bool is_transformed = false, is_inferred = false;
    int64_t unmarked = 0;
    PyObject *model = NULL;
    for (int i = tiling->count - 1; i >= tiling->settled; i--) {
        const Segment *segment = &tiling->segments[i];
        int64_t took = segment->end - segment->start;
        if (segment->stage == GAP) unmarked += took;
        else if (is_unnamed(segment)) is_transformed = true;
        if (segment->stage == TRANSFORM && !segment->explicit && took >= unmarked) is_inferred = true;
    }
    unmarked = 0;
    bool follows = false; /* the inference */
    for (int i = tiling->count - 1; is_inferred && i >= tiling->settled; i--) {
        Segment *segment = &tiling->segments[i];
        int64_t took = segment->end - segment->start;
        if (!is_unnamed(segment)) continue;
        if (segment->stage == GAP) unmarked += took;
        if (segment->stage == TRANSFORM && took >= unmarked) {
            follows = true;
            segment->stage = INFERENCE;
            if (segment->attributes != NULL) set_object(&model, segment->attributes);
        } else {
            segment->stage = follows ? PREPROCESS : POSTPROCESS;
            set_object(&segment->attributes, NULL);
        }
    }
    if (!is_inferred) {
        if (is_transformed && tiling->model == NULL) set_object(&model, held[UNRECOGNISED]);
        name_pending(tiling, HANDLER, model);
    }
    if (tiling->model == NULL) set_object(&tiling->model, model);
    Py_XDECREF(model);
}

/* Tiler.close: leave the stages that tile [start, end) in `segments`; none if that is empty. */
int close_tiling(Tiling *tiling, int64_t start, int64_t now, int64_t end) {
    Segment *open = &tiling->open;
    if (open->stage == GAP && (now < open->start || now - open->start < WIRE_OVERHEAD_NS)) reopen(tiling, SEND);
    open->end = now > open->start ? now : open->start;
    if (keep(tiling) < 0) return -1;
    name_rest(tiling);
    int count = tiling->count, tiles = 0;
    tiling->count = 0; /* until each has moved to its place */
    int64_t at = start;
    for (int i = 0; i < count; i++) {
        Segment segment = tiling->segments[i], *last = tiles ? &tiling->segments[tiles - 1] : NULL;
        int64_t until = segment.end < end ? segment.end : end;
        bool is_empty = until <= at;
        if (is_empty) until = at;
        if (end <= start || (is_empty && segment.context == NULL)) {
            let_go_segments(&segment, 1);
            continue;
        }
        if (last != NULL && last->stage == segment.stage && !last->visits && !segment.visits && !last->explicit
            && !segment.explicit && !(last->context && segment.context)) {
            if (last->context == NULL) set_object(&last->context, segment.context);
            if (last->attributes == NULL) set_object(&last->attributes, segment.attributes);
            let_go_segments(&segment, 1);
        } else {
            last = &tiling->segments[tiles++];
            *last = segment;
            last->start = at;
        }
        last->end = at = until;
    }
    if (tiles == 0 && end > start) tiling->segments[tiles++] = (Segment){.start = start, .stage = HANDLER};
    if (tiles) tiling->segments[tiles - 1].end = end;
    tiling->count = tiles;
    return 0;
}

/* Take all that is known of the first inference that says something of its model. */
void describe_first_inference(Tiling *tiling) {
    for (int i = 0; i < tiling->count; i++) {
        const Segment *one = &tiling->segments[i];
        if (one->stage != INFERENCE || one->attributes == NULL) continue;
        set_object(&tiling->model, one->attributes);
        return;
    }
}

/* Return the place of one of the numbers of stages that a tiling has, of all segments and open marks. */
static int *number_at(Tiling *tiling, int at) {
    if (at < tiling->count) return &tiling->segments[at].stage;
    return at == tiling->count ? &tiling->open.stage : &tiling->marks[at - tiling->count - 1].stage;
}

/* Forget the names that no stage has any more: a request may make up any number of them. */
static int forget_names(Tiling *tiling) {
    int *numbers = PyMem_Calloc((size_t)tiling->named + 1, sizeof *numbers), used = 0;
    if (numbers == NULL) return PyErr_NoMemory(), -1;
    int places = tiling->count + 1 + tiling->marked;
    for (int i = 0; i < places; i++)
        if (*number_at(tiling, i) >= KNOWN) numbers[*number_at(tiling, i) - KNOWN] = 1;
    for (int i = 0; i < tiling->named; i++) {
        if (!numbers[i]) {
            Py_DECREF(tiling->names[i]);
            continue;
        }
        tiling->names[used] = tiling->names[i];
        numbers[i] = KNOWN + used++;
    }
    tiling->named = used;
    for (int i = 0; i < places; i++)
        if (*number_at(tiling, i) >= KNOWN) *number_at(tiling, i) = numbers[*number_at(tiling, i) - KNOWN];
    PyMem_Free(numbers);
    return 0;
}

/* Sum short visits, where there are more than are sent of a request. */
int shorten(Tiling *tiling, PyObject *given, int limit) {
    int64_t cuts[MAX_CUTS + 1];
    Segment *few, *before = tiling->segments;
    int count = tiling->count, most = limit - 1 < MAX_SEGMENTS ? limit - 1 : MAX_SEGMENTS;
    int left = read_cuts(given, cuts) < 0 ? -1 : coalesce(before, count, cuts, most, &few);
    if (left < 0) return -1;
    tiling->shorten_at = limit > 2 * left ? limit : 2 * left;
    if (few == NULL) return 0;
    tiling->segments = few;
    tiling->segment_room = count;
    tiling->count = left;
    tiling->settled = 0;
    free_segments(before, count);
    return forget_names(tiling);
}

/* --- what others read */

bool add_up(Totals *totals, const Segment *segments, int count) {
    totals->count = 0;
    totals->of = PyMem_Malloc((size_t)count * sizeof *totals->of + 1);
    if (totals->of == NULL) return PyErr_NoMemory(), false;
    for (const Segment *one = segments; one < segments + count; one++) {
        int at = 0;
        while (at < totals->count && totals->of[at].stage != one->stage) at++;
        if (at == totals->count) totals->of[totals->count++] = (struct Total){0, one->stage};
        totals->of[at].sum += one->end - one->start;
    }
    return true;
}

/* Set an attribute, if there is something to set, and let that go. */
static bool set_attribute(PyObject *object, const char *name, PyObject *value) {
    bool done = value != NULL && PyObject_SetAttrString(object, name, value) == 0;
    Py_XDECREF(value);
    return done;
}

PyObject *segment_object(const Tiling *tiling, const Segment *segment) {
    PyObject *name = stage_name(tiling, segment->stage);
    PyObject *made = PyObject_CallFunction(held[SEGMENT], "OL", name, (long long)segment->start);
    if (made == NULL) return NULL;
    bool done = set_attribute(made, "end", PyLong_FromLongLong(segment->end));
    if (done && segment->attributes) done = set_attribute(made, "attributes", Py_NewRef(segment->attributes));
    if (done && segment->context) done = set_attribute(made, "context", Py_NewRef(segment->context));
    if (done && segment->link) done = set_attribute(made, "link", Py_NewRef(segment->link));
    if (done && segment->explicit) done = set_attribute(made, "explicit", Py_NewRef(Py_True));
    if (done && segment->visits)
        done = set_attribute(made, "coalesced", PyLong_FromLong(segment->visits))
               && set_attribute(made, "longest", PyLong_FromLongLong(segment->longest));
    if (!done) Py_CLEAR(made);
    return made;
}

int read_time(PyObject *value, int64_t *time) {
    *time = PyLong_AsLongLong(value);
    return *time == -1 && PyErr_Occurred() ? -1 : 0;
}

int read_cuts(PyObject *given, int64_t *cuts) {
    Py_ssize_t count = PyTuple_Check(given) ? PyTuple_Size(given) : -1;
    if (count < 0 || count > MAX_CUTS) return fail(PyExc_TypeError, "cuts are a tuple of at most three int");
    for (Py_ssize_t i = 0; i < count; i++)
        if (read_time(PyTuple_GetItem(given, i), &cuts[i]) < 0) return -1;
    cuts[count] = 0;
    return 0;
}
