/* Logs of spans, and these as columns: the buffers of Arrow's columnar format. */
#include "decoder.h"

#define CAPSULE "stagetrace._native.log"

static void free_log(PyObject *capsule) {
    Log *log = PyCapsule_GetPointer(capsule, CAPSULE);
    close_buffer(&log->cells);
    PyMem_Free(log);
}

PyObject *open_log(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    Log *log = PyMem_Calloc(1, sizeof *log);
    if (log == NULL) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(log, CAPSULE, free_log);
    if (capsule == NULL) PyMem_Free(log);
    return capsule;
}

Log *log_of(PyObject *object, int state) {
    Log *log = PyCapsule_GetPointer(object, CAPSULE);
    int found = OPEN;
    if (log == NULL || __atomic_compare_exchange_n(&log->state, &found, state, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
        || (found == JOINED && state == JOINED)) return log;
    fail(PyExc_RuntimeError, "spans are being added to this log, or it was joined");
    return NULL;
}

/* A column as Arrow has it, while it is filled. */
typedef struct {
    size_t values, bytes; /* how many are not NULL, and what they take */
    size_t next;          /* row that the next one is for, at the least */
    size_t used;          /* bytes of texts that are there */
    int kind;
    bool is_seen;
    PyObject *validity, *offsets, *data;
    unsigned char *bits; /* NULL if no value is NULL */
    int32_t *starts;     /* NULL of numbers */
    char *place;
} Column;

/* One call of `join_logs`. */
typedef struct {
    Log **logs;
    Py_ssize_t count;
    size_t rows;
    int end_of_span;
    Column columns[MAX_COLUMNS];
} Table;

static void count_value(Column *column, size_t size) {
    column->is_seen = true;
    if (size == NO_VALUE) return;
    column->values++;
    column->bytes += size;
}

/* Write where the texts of the rows before this one end: those without a value, where they begin. */
static void reach(Column *column, size_t row) {
    for (; column->next <= row; column->next++) column->starts[column->next] = (int32_t)column->used;
}

static void add_value(Column *column, size_t row, const char *value, size_t size) {
    if (size == NO_VALUE) return;
    if (column->bits) column->bits[row / 8] |= (unsigned char)(1 << row % 8);
    if (column->starts) {
        reach(column, row);
        memcpy(column->place + column->used, value, size);
        column->used += size;
    } else if (column->kind == BOOL) {
        column->place[row / 8] |= (char)(*value << row % 8);
    } else if (size == sizeof(uint64_t)) { /* written out, since most are */
        memcpy(column->place + row * sizeof(uint64_t), value, sizeof(uint64_t));
    } else {
        memcpy(column->place + row * size, value, size);
    }
}

/* Count the values of all logs, or add them to what has been counted. */
static void walk(Table *table, bool is_counted) {
    size_t row = 0;
    Cell cell;
    for (Py_ssize_t i = 0; i < table->count; i++) {
        const Buffer *cells = &table->logs[i]->cells;
        for (const char *at = cells->data, *end = at + cells->size; at < end;) {
            memcpy(&cell, at, sizeof cell);
            at += sizeof cell;
            Column *column = &table->columns[cell.column];
            if ((int)cell.column == table->end_of_span) row++;
            else if (is_counted) add_value(column, row, at, cell.size);
            else count_value(column, cell.size);
            if (cell.size != NO_VALUE) at += cell.size;
        }
    }
}

/* Return bytes of zeros, and where they are. */
static PyObject *zeros(size_t size, void *at) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    char *data = bytes ? PyBytes_AsString(bytes) : NULL;
    if (data != NULL) memset(data, 0, size);
    memcpy(at, &data, sizeof data);
    return bytes;
}

/* Make a column's buffers, whose sizes have been counted. */
static int open_column(Column *column, size_t rows) {
    bool is_text = column->kind == STRING || column->kind == BINARY;
    size_t bits = (rows + 7) / 8, size = column->kind == BOOL ? bits : rows * (column->kind == INT32 ? 4 : 8);
    if (is_text && (size = column->bytes) > INT32_MAX) return fail(PyExc_OverflowError, "a column of more than 2 GiB");
    if (column->values < rows && (column->validity = zeros(bits, &column->bits)) == NULL) return -1;
    if (is_text && (column->offsets = zeros((rows + 1) * sizeof *column->starts, &column->starts)) == NULL) return -1;
    return (column->data = zeros(size, &column->place)) ? 0 : -1;
}

/* Return how many are NULL, then the buffers; None for a column that no span has. */
static PyObject *close_column(Column *column, size_t rows) {
    if (!column->is_seen) Py_RETURN_NONE;
    if (column->starts) reach(column, rows);
    Py_ssize_t nulls = (Py_ssize_t)(rows - column->values);
    PyObject *validity = column->validity ? column->validity : Py_None;
    return column->starts ? Py_BuildValue("(nOOO)", nulls, validity, column->offsets, column->data)
                          : Py_BuildValue("(nOO)", nulls, validity, column->data);
}

static PyObject *fill(Table *table, PyObject *logs, const State *state) {
    table->end_of_span = END_OF_SPAN(state);
    for (Py_ssize_t i = 0; i < table->count; i++) {
        table->logs[i] = log_of(PyTuple_GetItem(logs, i), JOINED);
        if (table->logs[i] == NULL) return NULL;
        table->rows += table->logs[i]->spans;
    }
    walk(table, false);
    for (int i = 0; i < table->end_of_span; i++) {
        Column *column = &table->columns[i];
        column->kind = state->kinds[i];
        if (i < FIXED) column->is_seen = true;
        if (column->is_seen && open_column(column, table->rows) < 0) return NULL;
    }
    walk(table, true);
    PyObject *result = PyList_New(0);
    for (int i = 0; result != NULL && i < table->end_of_span; i++) {
        PyObject *column = close_column(&table->columns[i], table->rows);
        if (column == NULL || PyList_Append(result, column) < 0) Py_CLEAR(result);
        Py_XDECREF(column);
    }
    return result;
}

PyObject *join_logs(PyObject *module, PyObject *given) {
    PyObject *result = NULL, *logs = PySequence_Tuple(given); /* which nobody changes meanwhile */
    if (logs == NULL) return NULL;
    Table table = {.count = PyTuple_Size(logs)};
    table.logs = PyMem_Calloc((size_t)table.count + 1, sizeof *table.logs);
    if (table.logs == NULL) PyErr_NoMemory();
    else result = fill(&table, logs, decoder_state(module));
    for (int i = 0; i < MAX_COLUMNS; i++) {
        Py_XDECREF(table.columns[i].validity);
        Py_XDECREF(table.columns[i].offsets);
        Py_XDECREF(table.columns[i].data);
    }
    PyMem_Free(table.logs);
    Py_DECREF(logs);
    return result;
}
