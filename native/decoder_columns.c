/* Columns of what `decode_spans` has read, as the buffers of Arrow's columnar format.
 *
 * Logs of spans are only ever made by `decode_spans`; they are checked all the same before anything is written.
 */
#include "decoder.h"

/* What each span has, as FIXED has it. */
enum { C_TRACE_ID, C_SPAN_ID, C_PARENT, C_NAME, C_KIND, C_STATUS, C_START, C_END, C_FLAGS, FIXED };

static const unsigned char FIXED_KINDS[FIXED] = {BINARY, BINARY, BINARY, STRING, INT32, INT32, INT, INT, INT};

/* A column as Arrow has it, while it is filled. */
typedef struct {
    size_t values, bytes; /* how many are not NULL, and what texts take */
    size_t next;          /* row that the next value is for, at the least */
    size_t used;          /* bytes of texts that are there */
    bool seen;
    unsigned char kind;
    PyObject *validity, *offsets, *data;
    unsigned char *bits;
    int32_t *starts;
    char *place;
} Column;

/* One call of `decode_columns`. */
typedef struct {
    Column columns[FIXED + MAX_COLUMNS];
    int count;
    size_t rows;
} Table;

static bool is_text(const Column *column) { return column->kind == STRING || column->kind == BINARY; }

/* Count a value for the present row. Return false if it is none of this column. */
static bool count_value(Column *column, size_t row, size_t size) {
    if (column->next > row || (size != NO_VALUE && !is_text(column) && size != sizeof(uint64_t))) return false;
    column->next = row + 1;
    column->seen = true;
    if (size == NO_VALUE) return true;
    column->values++;
    if (is_text(column)) column->bytes += size;
    return true;
}

/* Read the Head at `at`, and return its value; NULL if that is not there. */
static const char *read_head(Head *head, const Table *table, const char *at, const char *end) {
    if ((size_t)(end - at) < sizeof *head) return NULL;
    memcpy(head, at, sizeof *head);
    at += sizeof *head;
    size_t size = head->size == NO_VALUE ? 0 : head->size;
    return head->column < (uint32_t)(table->count - FIXED) && size <= (size_t)(end - at) ? at : NULL;
}

/* Count what one log holds, and so check it. */
static bool count_log(Table *table, const char *at, size_t size) {
    const char *end = at + size;
    Row row;
    while (at < end) {
        if ((size_t)(end - at) < sizeof row) return false;
        memcpy(&row, at, sizeof row);
        at += sizeof row;
        if (row.size > (size_t)(end - at) || row.name > row.size) return false;
        const char *after = at + row.size;
        Column *columns = table->columns;
        columns[C_PARENT].values += row.has_parent != 0;
        columns[C_STATUS].values += row.has_status != 0;
        columns[C_NAME].bytes += row.name;
        for (at += row.name; at < after;) {
            Head head;
            at = read_head(&head, table, at, after);
            if (at == NULL || !count_value(&columns[FIXED + head.column], table->rows, head.size)) return false;
            at += head.size == NO_VALUE ? 0 : head.size;
        }
        table->rows++;
    }
    return true;
}

static PyObject *zeros(size_t size) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes != NULL) memset(PyBytes_AsString(bytes), 0, size);
    return bytes;
}

/* Make a column's buffers, whose sizes have been counted. */
static int open_column(Column *column, size_t rows) {
    column->next = 0;
    if (!column->seen) return 0;
    if (column->values < rows) {
        column->validity = zeros((rows + 7) / 8);
        if (column->validity == NULL) return -1;
        column->bits = (unsigned char *)PyBytes_AsString(column->validity);
    }
    size_t size = column->kind == BOOL ? (rows + 7) / 8 : rows * (column->kind == INT32 ? 4 : 8);
    if (is_text(column)) {
        size = column->bytes;
        if (size > INT32_MAX) return fail(PyExc_OverflowError, "a column of more than 2 GiB");
        column->offsets = zeros((rows + 1) * sizeof *column->starts);
        if (column->offsets == NULL) return -1;
        column->starts = (int32_t *)PyBytes_AsString(column->offsets);
    }
    column->data = zeros(size);
    if (column->data == NULL) return -1;
    column->place = PyBytes_AsString(column->data);
    return 0;
}

/* Write where the texts of the rows before this one end: those without a value, where they begin. */
static void reach(Column *column, size_t row) {
    for (; column->next <= row; column->next++) column->starts[column->next] = (int32_t)column->used;
}

static void add_text(Column *column, size_t row, const void *text, size_t size) {
    reach(column, row);
    if (column->bits) column->bits[row / 8] |= (unsigned char)(1 << row % 8);
    if (size > 0) memcpy(column->place + column->used, text, size);
    column->used += size;
}

static void add_number(Column *column, size_t row, const void *number) {
    if (column->bits) column->bits[row / 8] |= (unsigned char)(1 << row % 8);
    if (column->kind == BOOL) {
        uint64_t bits;
        memcpy(&bits, number, sizeof bits);
        if (bits) column->place[row / 8] |= (char)(1 << row % 8);
    } else {
        size_t size = column->kind == INT32 ? 4 : 8;
        memcpy(column->place + row * size, number, size);
    }
}

static void add_row(Column *columns, size_t number, const Row *row, const char *name) {
    int64_t flags = row->flags;
    add_text(&columns[C_TRACE_ID], number, row->trace_id, sizeof row->trace_id);
    add_text(&columns[C_SPAN_ID], number, row->span_id, sizeof row->span_id);
    if (row->has_parent) add_text(&columns[C_PARENT], number, row->parent, sizeof row->parent);
    add_text(&columns[C_NAME], number, name, row->name);
    add_number(&columns[C_KIND], number, &row->kind);
    if (row->has_status) add_number(&columns[C_STATUS], number, &row->status);
    add_number(&columns[C_START], number, &row->start);
    add_number(&columns[C_END], number, &row->end);
    add_number(&columns[C_FLAGS], number, &flags);
}

/* Add what one log holds, which `count_log` has checked. */
static void add_log(Table *table, size_t *number, const char *at, size_t size) {
    const char *end = at + size;
    Row row;
    for (; at < end; ++*number) {
        memcpy(&row, at, sizeof row);
        at += sizeof row;
        const char *after = at + row.size;
        add_row(table->columns, *number, &row, at);
        for (at += row.name; at < after;) {
            Head head;
            memcpy(&head, at, sizeof head);
            at += sizeof head;
            if (head.size == NO_VALUE) continue;
            Column *column = &table->columns[FIXED + head.column];
            if (is_text(column)) add_text(column, *number, at, head.size);
            else add_number(column, *number, at);
            at += head.size;
        }
    }
}

/* Return how many are NULL, then the buffers; None for a column without values. Take the column's references. */
static PyObject *close_column(Column *column, size_t rows) {
    if (!column->seen) Py_RETURN_NONE;
    if (is_text(column)) reach(column, rows);
    Py_ssize_t nulls = (Py_ssize_t)(rows - column->values);
    PyObject *validity = column->validity ? column->validity : Py_None;
    return is_text(column) ? Py_BuildValue("(nOOO)", nulls, validity, column->offsets, column->data)
                           : Py_BuildValue("(nOO)", nulls, validity, column->data);
}

static void begin_table(Table *table, const State *state) {
    memset(table, 0, sizeof *table);
    table->count = FIXED + state->keyed + 2;
    for (int i = 0; i < table->count; i++) {
        table->columns[i].kind = i < FIXED ? FIXED_KINDS[i] : state->kinds[i - FIXED];
        table->columns[i].seen = i < FIXED;
    }
}

static int fill(Table *table, PyObject *logs) {
    char *log;
    Py_ssize_t size, count = PyTuple_Size(logs);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(logs, i), &log, &size) < 0) return -1;
        if (!count_log(table, log, (size_t)size)) return fail(PyExc_ValueError, "this is no log of spans");
    }
    for (int i = 0; i < FIXED; i++)
        if (i != C_PARENT && i != C_STATUS) table->columns[i].values = table->rows;
    table->columns[C_TRACE_ID].bytes = 16 * table->rows;
    table->columns[C_SPAN_ID].bytes = 8 * table->rows;
    table->columns[C_PARENT].bytes = 8 * table->columns[C_PARENT].values;
    for (int i = 0; i < table->count; i++)
        if (open_column(&table->columns[i], table->rows) < 0) return -1;
    size_t number = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(logs, i), &log, &size) < 0) return -1;
        add_log(table, &number, log, (size_t)size);
    }
    return 0;
}

PyObject *decode_columns(PyObject *module, PyObject *given) {
    PyObject *logs = PySequence_Tuple(given); /* which nobody changes between counting and adding */
    if (logs == NULL) return NULL;
    Table table;
    begin_table(&table, decoder_state(module));
    PyObject *result = fill(&table, logs) == 0 ? PyList_New(0) : NULL;
    for (int i = 0; result != NULL && i < table.count; i++) {
        PyObject *column = close_column(&table.columns[i], table.rows);
        if (column == NULL || PyList_Append(result, column) < 0) Py_CLEAR(result);
        Py_XDECREF(column);
    }
    for (int i = 0; i < table.count; i++) {
        Py_XDECREF(table.columns[i].validity);
        Py_XDECREF(table.columns[i].offsets);
        Py_XDECREF(table.columns[i].data);
    }
    Py_DECREF(logs);
    return result;
}
