/* The header and the library together, as a C program sees them. The unit tests of the crate compare all results with
 * the Rust library. */
#include <lstm.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\nlast error: %s\n", __FILE__, __LINE__, #condition, lstm_last_error());         \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A model of GuitarML. */
static const char MODEL[] =
    "{\"model_data\": {\"model\": \"SimpleRNN\", \"input_size\": 1, \"skip\": 0, \"output_size\": 1,"
    "                  \"unit_type\": \"LSTM\", \"num_layers\": 1, \"hidden_size\": 1, \"bias_fl\": true},"
    " \"state_dict\": {\"rec.weight_ih_l0\": [[1.5], [0.5], [2], [1]],"
    "                  \"rec.weight_hh_l0\": [[0.5], [0.5], [0.5], [0.5]],"
    "                  \"rec.bias_ih_l0\": [0, 0, 0, 0], \"rec.bias_hh_l0\": [0, 0, 0, 0],"
    "                  \"lin.weight\": [[1.5]], \"lin.bias\": [0.25]}}";

static LstmModel *open_model(const char *precision) {
    LstmOptions *options = NULL;
    LstmModel *model = NULL;
    CHECK(lstm_options_create(&options) == LSTM_STATUS_OK);
    CHECK(lstm_options_set(options, "precision", precision) == LSTM_STATUS_OK);
    CHECK(lstm_model_open_memory((const uint8_t *)MODEL, strlen(MODEL), options, &model) == LSTM_STATUS_OK);
    lstm_options_destroy(options);
    return model;
}

static void run(const char *precision, const float *x, float *y, float *stream_y, size_t steps) {
    LstmModel *model = open_model(precision);
    LstmStream *stream = NULL;
    CHECK(lstm_model_forward(model, x, 1, steps, NULL, NULL, y, NULL) == LSTM_STATUS_OK);
    CHECK(lstm_stream_create(model, 1, &stream) == LSTM_STATUS_OK);
    CHECK(lstm_stream_run(stream, x, stream_y, steps) == LSTM_STATUS_OK);
    lstm_stream_destroy(stream);
    lstm_model_destroy(model);
}

/* Audio hosts flush subnormal numbers to zero; this one also rounds down, which changes most results. */
static void test_flushed_subnormals(void) {
#if defined(__x86_64__)
    enum { STEPS = 4 };
    const float x[STEPS] = {0.3f, -0.7f, 1e-39f, 0.9f};
    const char *precisions[] = {"f32", "int8", "int12"};
    for (size_t k = 0; k < 3; k++) {
        float y[2][STEPS], stream_y[2][STEPS];
        run(precisions[k], x, y[0], stream_y[0], STEPS);
        unsigned settings = _mm_getcsr();
        _mm_setcsr(settings | 0xa040u); /* FTZ, DAZ and rounding down */
        run(precisions[k], x, y[1], stream_y[1], STEPS);
        CHECK((_mm_getcsr() & 0xa040u) == 0xa040u);
        _mm_setcsr(settings);
        CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0 && memcmp(y[0], stream_y[0], sizeof y[0]) == 0);
        CHECK(memcmp(stream_y[0], stream_y[1], sizeof y[0]) == 0);
        CHECK(y[0][0] != 0.25f); /* the inputs matter */
    }
#else
    puts("not run: flags that flush subnormals, whose test is for x86-64");
#endif
}

static void test_errors(void) {
    LstmModel *model = NULL;
    CHECK(lstm_model_open("no such file", NULL, &model) == LSTM_STATUS_IO && model == NULL);
    CHECK(strstr(lstm_last_error(), "no such file") != NULL);
    CHECK(lstm_model_open(NULL, NULL, &model) == LSTM_STATUS_INVALID_ARGUMENT);
    CHECK(lstm_stream_step(NULL, NULL, NULL) == LSTM_STATUS_INVALID_ARGUMENT);
    lstm_model_destroy(NULL);
    lstm_stream_destroy(NULL);
    lstm_options_destroy(NULL);
}

static void test_states(void) {
    LstmModel *model = open_model("f32");
    LstmStream *stream = NULL;
    float x = 0.5f, first, second, again, state[2];
    CHECK(lstm_model_state_size(model, 1) == 2);
    CHECK(lstm_stream_create(model, 1, &stream) == LSTM_STATUS_OK);
    lstm_model_destroy(model); /* the stream keeps it alive */
    CHECK(lstm_stream_step(stream, &x, &first) == LSTM_STATUS_OK);
    CHECK(lstm_stream_get_state(stream, state, 2) == LSTM_STATUS_OK);
    CHECK(lstm_stream_step(stream, &x, &second) == LSTM_STATUS_OK && second != first);
    CHECK(lstm_stream_set_state(stream, state, 2) == LSTM_STATUS_OK);
    CHECK(lstm_stream_step(stream, &x, &again) == LSTM_STATUS_OK && again == second);
    CHECK(lstm_stream_reset(stream) == LSTM_STATUS_OK);
    CHECK(lstm_stream_step(stream, &x, &again) == LSTM_STATUS_OK && again == first);
    CHECK(lstm_stream_get_state(stream, state, 3) == LSTM_STATUS_INVALID_ARGUMENT);
    lstm_stream_destroy(stream);
}

int main(void) {
    CHECK(strlen(lstm_version()) > 0);
    test_errors();
    test_states();
    test_flushed_subnormals();
    puts("interface: passed");
    return 0;
}
