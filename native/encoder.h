/* What the files of the encoder share: the stages that a request's marks make up (tiling.c), and these and the entry span
 * as bytes (spans.c). encoder.c uses both. */
#ifndef STAGETRACE_ENCODER_H
#define STAGETRACE_ENCODER_H

#include "native.h"

#define MAX_EVENTS 127
#define MAX_SEGMENTS (MAX_EVENTS + 1)
enum { MAX_CUTS = 3 }; /* as in segments.py */

/* Kinds of events, as in tiler.py. */
enum { BEGIN, END, BEGIN_MARK, END_MARK };

/* A stage is a number: one of these, activities first and by priority, or of a name that a Mark of this request has.
   The rest are the other objects that the module's state, an array, holds; nothing writes to it after the import. */
enum {
    INFERENCE, TRANSFORM, PREPARE, QUEUE, SEND, RECEIVE, ACTIVITIES, GAP = ACTIVITIES, PREPROCESS, POSTPROCESS, HANDLER, KNOWN,
    MARK = KNOWN, NO_ATTRIBUTES, UNRECOGNISED, ML_STAGE, APPEND_ATTRIBUTES, TRACE_STATE, NO_STATE, MODEL_NAME, MODEL_VERSION,
    COMMON, COALESCED, LONGEST_MS, TILING_HELD
};

/* One visit to one stage: [start, end). */
typedef struct {
    int64_t start, end;
    PyObject *attributes; /* NULL if there are none; borrowed from an event or from `merged` */
    int64_t longest; /* of the visits that it stands for */
    int stage, visits; /* visits: 0 where it is one */
    bool explicit;
} Segment;

/* One call. */
typedef struct {
    PyObject *const *held;
    PyObject *events; /* a tuple of our own, which holds all that is borrowed here */
    PyObject *model;  /* borrowed like a segment's attributes */
    PyObject *merged; /* list of attributes made here, or NULL */
    PyObject *modelled; /* borrowed: the mark by which a person has said the model, or a part of that; never looked into */
    Segment open;
    int counts[ACTIVITIES]; /* open activities */
    int count, named, marked, waiting;
    bool inferred;
    /* What follows is filled as far as `count`, `named`, `marked` and `waiting` say. */
    Segment segments[MAX_SEGMENTS];
    PyObject *names[KNOWN + MAX_EVENTS]; /* by stage; owned from KNOWN on */
    PyObject *marks[MAX_EVENTS];         /* open ones, the latest last */
    int mark_stages[MAX_EVENTS];
    int pending[MAX_SEGMENTS]; /* indices of closed gaps and transforms, not yet named */
} Tiling;

/* The nanoseconds of each stage, and the stages in order of first appearance. */
typedef struct {
    int64_t sums[KNOWN + MAX_EVENTS];
    int order[MAX_SEGMENTS], stages;
} Totals;

/* What an entry span has besides its stages and times; all borrowed. */
typedef struct {
    PyObject *identity, *rest, *client, *attributes; /* rest and client are bytes; client: NULL if there is none */
} Entry;

/* tiling.c */
int read_time(PyObject *value, int64_t *time);
int read_times(int64_t *times, PyObject *const *args, int number);
int read_cuts(PyObject *given, int64_t *cuts);
int read_tiling_held(PyObject **held);
int tile(Tiling *tiling, PyObject *const *held, PyObject *events, const int64_t *times, const int64_t *cuts);
void release_tiling(Tiling *tiling);

/* spans.c */
bool is_identity(PyObject *object);
PyObject *make_head(PyObject *const *held, PyObject *context);
void add_up(Totals *totals, const Tiling *tiling, int count);
int fill_tails(PyObject *const *held);
int put_stages(Buffer *buffer, Tiling *tiling, int count, PyObject *head, const char *id, PyObject *mark);
int put_entry(Buffer *buffer, const Tiling *tiling, int count, PyObject *head, const int64_t *times, const Entry *entry);

/* What the encoder holds, of this module: TILING_HELD objects. */
PyObject **encoder_held(PyObject *module);

#endif
