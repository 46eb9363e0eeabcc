/* What the files of a request's record share: its marks (record.c) and the marking by hand (stage.c), the stages that the
 * marks make up (tiling.c), many visits as few (coalescing.c), and all as bytes (encoder.c).
 *
 * What they do and why is said where the Python implementation is: request/marks.py, tiler.py, segments.py, and
 * otlp/encode/. Whoever keeps an object past one statement owns it, since almost any call can run Python code: an
 * attribute's own, or a finaliser. What such code must not meet half done, nobody else can reach meanwhile.
 */
#ifndef STAGETRACE_RECORD_H
#define STAGETRACE_RECORD_H

#include "native.h"

#ifdef Py_GIL_DISABLED
#define LOCK Py_BEGIN_CRITICAL_SECTION
#define UNLOCK Py_END_CRITICAL_SECTION
#else
#define LOCK(object)
#define UNLOCK()
#endif

enum { MAX_CUTS = 3, MAX_SEGMENTS = 128 }; /* a stream has so many cuts; as in segments.py */

/* A stage is a number: one of these, activities first and by priority, or KNOWN and more for a name of a request's own. */
enum {
    INFERENCE, POSTPROCESS, TRANSFORM, PREPARE, QUEUE, SEND, RECEIVE, ACTIVITIES, GAP = ACTIVITIES, PREPROCESS, HANDLER,
    OTHER, KNOWN
};
extern PyObject *known_stages[KNOWN]; /* str */

/* One `with stage(name)` block, or a stage that happened elsewhere: then perhaps with a context and a link. */
typedef struct {
    PyObject_HEAD
    PyObject *stage, *attributes, *context, *link;
} Mark;

/* What is noted: that an activity or a mark begins or ends. It owns its objects. */
enum { BEGIN, END, BEGIN_MARK, END_MARK };
typedef struct {
    int64_t at;
    Mark *mark;           /* NULL: an activity */
    PyObject *attributes; /* NULL: none */
    int8_t kind, activity;
} Event;

/* One visit to one stage: [start, end). It owns its objects, NULL where there are none. */
typedef struct {
    int64_t start, end, longest; /* longest: of the visits that it stands for */
    PyObject *attributes, *context, *link;
    int stage, visits; /* visits: 0 where it is one */
    bool explicit;
} Segment;

typedef struct {
    Segment *segments;
    PyObject **names; /* of the request's own stages, by number from KNOWN on; exact str */
    struct OpenMark { Mark *mark; int stage; } *marks; /* the latest last */
    int count, segment_room, named, name_room, marked, mark_room;
    Segment open;
    int counts[ACTIVITIES]; /* open activities */
    int given;              /* segments that are somebody's parent */
    int settled;            /* segments before this one have their names */
    int shorten_at;
    bool inferred;
    PyObject *model; /* attributes of the first inference, or that there was none; NULL: nothing is known */
    PyObject *modelled; /* the mark by which a person has said the model, or a part of that */
} Tiling;

/* The stages of a request that has ended. Nothing changes them, but that one may be given a context. */
typedef struct {
    PyObject_HEAD
    Tiling *tiling;
    PyObject *model;
} Stages;

/* Nanoseconds by stage, in order of first appearance. */
typedef struct {
    struct Total { int64_t sum; int stage; } *of;
    int count;
} Totals;

/* tiling.c */
int fill_tiling(void);
void set_object(PyObject **place, PyObject *object);
Tiling *new_tiling(int64_t start, int limit);
void free_tiling(Tiling *tiling);
int traverse_tiling(const Tiling *tiling, visitproc visit, void *arg);
int take(Tiling *tiling, const Event *event);
int shorten(Tiling *tiling, PyObject *cuts, int limit);
int close_tiling(Tiling *tiling, int64_t start, int64_t now, int64_t end);
void describe_first_inference(Tiling *tiling);
PyObject *stage_name(const Tiling *tiling, int stage);
int read_time(PyObject *value, int64_t *time);
int read_cuts(PyObject *given, int64_t *cuts);
bool is_transform(int stage);
void let_go_segments(Segment *segments, int count);
void free_segments(Segment *segments, int count);
bool add_up(Totals *totals, const Segment *segments, int count);
PyObject *segment_object(const Tiling *tiling, const Segment *segment);

/* coalescing.c */
int fill_coalescing(void);
int coalesce(const Segment *segments, int count, const int64_t *cuts, int limit, Segment **few);

/* record.c */
extern PyTypeObject *marks_type, *stages_type;
int add_record_types(PyObject *module);
int note(PyObject *record, PyObject *at, int kind, PyObject *what, PyObject *attributes);
bool takes_marks(PyObject *record, bool *is_bound);
void free_object(PyObject *self, inquiry clear);

/* stage.c */
extern PyTypeObject *mark_type;

#endif
