/* Runs a model over one sequence, and then step by step: both give the same bits.
 *
 *     cc forward.c $(pkg-config --cflags --libs lstm) -o forward && ./forward MODEL
 */
#include <lstm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 100 };

/* Ends the program if a call failed. */
static void check(enum LstmStatus status, const char *what) {
    if (status != LSTM_STATUS_OK) {
        fprintf(stderr, "%s: %s: %s\n", what, lstm_status_text(status), lstm_last_error());
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: forward MODEL\n");
        return 2;
    }
    LstmModel *model = NULL;
    check(lstm_model_open(argv[1], NULL, &model), "open");
    puts(lstm_model_description(model));
    if (lstm_model_reads_tokens(model) || lstm_model_returns_last_step(model)) {
        fprintf(stderr, "expected a model with an output for each step of features\n");
        return 1;
    }

    size_t inputs = lstm_model_input_size(model), outputs = lstm_model_output_size(model);
    float *x = calloc(STEPS * inputs, sizeof *x);
    float *y = calloc(STEPS * outputs, sizeof *y);
    float *step_y = calloc(STEPS * outputs, sizeof *step_y);
    for (size_t k = 0; k < STEPS * inputs; k++) {
        x[k] = (float)(k * 37 % 101) / 50.0f - 1.0f;
    }
    check(lstm_model_forward(model, x, 1, STEPS, NULL, NULL, y, NULL), "forward");

    LstmStream *stream = NULL;
    check(lstm_stream_create(model, 1, &stream), "stream");
    for (size_t t = 0; t < STEPS; t++) {
        check(lstm_stream_step(stream, x + t * inputs, step_y + t * outputs), "step");
    }
    int same = memcmp(y, step_y, STEPS * outputs * sizeof *y) == 0;
    printf("last output %.9g; the stream's bits are %s\n", (double)y[STEPS * outputs - 1], same ? "the same" : "OTHERS");

    lstm_stream_destroy(stream);
    lstm_model_destroy(model);
    free(x);
    free(y);
    free(step_y);
    return same ? 0 : 1;
}
