/* LSTM models of every supported format, whole sequences and real-time streams. docs/c.md is the manual.
 *
 * Written by `cargo xtask c --update-header`. Do not edit. */

#ifndef LSTM_H
#define LSTM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * How a call ended.
 */
typedef enum LstmStatus {
  /**
   * The call succeeded.
   */
  LSTM_STATUS_OK = 0,
  /**
   * An argument is invalid: a null or unaligned pointer, overlapping arrays, a wrong size, or an invalid option.
   */
  LSTM_STATUS_INVALID_ARGUMENT = 1,
  /**
   * The content of the file is not a supported model.
   */
  LSTM_STATUS_INVALID_FILE = 2,
  /**
   * The file could not be read.
   */
  LSTM_STATUS_IO = 3,
  /**
   * The device is not available, or failed.
   */
  LSTM_STATUS_DEVICE = 4,
  /**
   * An array does not fit in memory.
   */
  LSTM_STATUS_OUT_OF_MEMORY = 5,
  /**
   * A fault of this library. A stream in whose call this occurs can't be used any more.
   */
  LSTM_STATUS_INTERNAL = 6,
} LstmStatus;

/**
 * A model on a device. Several threads may use it at the same time.
 */
typedef struct LstmModel LstmModel;

/**
 * Options for opening a model: the device, the precision, and what the file does not say. One thread at a time may use
 * an object.
 */
typedef struct LstmOptions LstmOptions;

/**
 * A stream: `batch` sequences whose time steps arrive over time. It keeps their states between calls, and the model
 * alive. One thread at a time may use it.
 */
typedef struct LstmStream LstmStream;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, such as `0.1.0`. The text is static.
 */
const char *lstm_version(void);

/**
 * Opens a model file of any supported format; the content determines the format. `options` may be NULL for the
 * default options. On success `out` is a model, which `lstm_model_destroy` frees.
 *
 * # Safety
 * `path` is NULL or ends with a zero; `options` is NULL or valid; `out` is NULL or can be written.
 */
enum LstmStatus lstm_model_open(const char *path, const struct LstmOptions *options, struct LstmModel **out);

/**
 * Opens a model from the `size` bytes of its file, which may be freed afterwards. Otherwise as `lstm_model_open`. An
 * ONNX file whose tensors are in other files can't be opened in this way.
 *
 * # Safety
 * `bytes` is NULL or has `size` bytes; `options` is NULL or valid; `out` is NULL or can be written.
 */
enum LstmStatus lstm_model_open_memory(const uint8_t *bytes,
                                       size_t size,
                                       const struct LstmOptions *options,
                                       struct LstmModel **out);

/**
 * Destroys a model. Streams of the model stay valid. Does nothing for NULL.
 *
 * # Safety
 * `model` is NULL, or comes from this library and was not destroyed.
 */
void lstm_model_destroy(struct LstmModel *model);

/**
 * Number of features of the input at each time step; 1 for a model that reads tokens. 0 for NULL.
 *
 * # Safety
 * `model` is NULL or valid.
 */
size_t lstm_model_input_size(const struct LstmModel *model);

/**
 * The vocabulary size of a model that reads tokens; valid tokens are below it. 0 for other models and for NULL.
 *
 * # Safety
 * `model` is NULL or valid.
 */
size_t lstm_model_num_tokens(const struct LstmModel *model);

/**
 * Number of outputs at each time step. 0 for NULL.
 *
 * # Safety
 * `model` is NULL or valid.
 */
size_t lstm_model_output_size(const struct LstmModel *model);

/**
 * Number of parameters. 0 for NULL.
 *
 * # Safety
 * `model` is NULL or valid.
 */
size_t lstm_model_num_params(const struct LstmModel *model);

/**
 * Whether the input is tokens rather than features. False for NULL.
 *
 * # Safety
 * `model` is NULL or valid.
 */
bool lstm_model_reads_tokens(const struct LstmModel *model);

/**
 * Whether the model has outputs for the last time step only, rather than for each. False for NULL.
 *
 * # Safety
 * `model` is NULL or valid.
 */
bool lstm_model_returns_last_step(const struct LstmModel *model);

/**
 * Whether the steps of this model's streams are for real-time threads: they neither allocate, lock nor enter the
 * operating system. That is so on the CPU with one thread, if the CPU has kernels for every LSTM. It has none for other
 * activations of the gates than sigmoid and tanh, which the description then says: `reference`. False for NULL.
 *
 * # Safety
 * `model` is NULL or valid.
 */
bool lstm_model_is_real_time(const struct LstmModel *model);

/**
 * A description of the layers, with their precision, and of the device: text of several lines that is valid as long
 * as the model. Empty for NULL.
 *
 * # Safety
 * `model` is NULL or valid.
 */
const char *lstm_model_description(const struct LstmModel *model);

/**
 * Number of floats of the states of `batch` sequences: for each LSTM in order, the hidden states `h` of shape
 * `(layers * directions, batch, hidden size)`, or with a projection its size, and then the cell states `c` of shape
 * `(layers * directions, batch, hidden size)`. 0 for NULL, or if the number is too large.
 *
 * # Safety
 * `model` is NULL or valid.
 */
size_t lstm_model_state_size(const struct LstmModel *model, size_t batch);

/**
 * A text that the file carries along, such as `sample_rate`, or NULL if it has none of this name. Valid as long as the
 * model.
 *
 * # Safety
 * `model` is NULL or valid; `key` is NULL or ends with a zero.
 */
const char *lstm_model_metadata(const struct LstmModel *model, const char *key);

/**
 * Runs the model over a batch of sequences. `x` has the shape `(batch, steps, input size)`. `y` has the shape
 * `(batch, steps, output size)`, or `(batch, 1, output size)` for a model that returns the last step. All arrays are
 * row-major and must not overlap.
 *
 * - `lengths`: the number of time steps of each sequence, or NULL if all have `steps`; outputs beyond are 0
 * - `initial_state`, `final_state`: states as `lstm_model_state_size` describes them, or NULL
 *
 * # Safety
 * Each pointer is NULL or has the described number of elements; `model` is NULL or valid.
 */
enum LstmStatus lstm_model_forward(const struct LstmModel *model,
                                   const float *x,
                                   size_t batch,
                                   size_t steps,
                                   const size_t *lengths,
                                   const float *initial_state,
                                   float *y,
                                   float *final_state);

/**
 * Runs a model that reads tokens: `tokens` has the shape `(batch, steps)`. Otherwise as `lstm_model_forward`.
 *
 * # Safety
 * As for `lstm_model_forward`.
 */
enum LstmStatus lstm_model_forward_tokens(const struct LstmModel *model,
                                          const int64_t *tokens,
                                          size_t batch,
                                          size_t steps,
                                          const size_t *lengths,
                                          const float *initial_state,
                                          float *y,
                                          float *final_state);

/**
 * Creates options with their default values.
 *
 * # Safety
 * `out` is NULL or can be written.
 */
enum LstmStatus lstm_options_create(struct LstmOptions **out);

/**
 * Sets an option by its name. Both texts are UTF-8 and end with a zero.
 *
 * - `device`: `cpu` (default), `wgpu`, `cuda`, `cuda-tf32`, which is not bit-exact, or `auto`
 * - `threads`: maximum number of threads of the CPU; default 1
 * - `adapter_name`: a part of the name of wgpu's adapter; `ordinal`: the number of the CUDA device
 * - `precision`: `f32`, `int8` or `int12`; default: that of the file
 * - `name`: opens one LSTM of the file alone; may be set several times, for the nodes of an ONNX file
 * - `layers`: the layers of a file that has tensors but no graph, such as `embedding, rec, last, lin:relu, out`
 * - `set`: the value of a scalar input of an ONNX graph, such as `sr=16000`; may be set several times
 * - `cell`, `clip`, `coupled`: options of the LSTM that a file of tensors does not say
 *
 * # Safety
 * `options` is NULL or comes from `lstm_options_create` and is not in use; the texts are NULL or end with a zero.
 */
enum LstmStatus lstm_options_set(struct LstmOptions *options, const char *name, const char *value);

/**
 * Destroys options. Does nothing for NULL.
 *
 * # Safety
 * `options` is NULL, or comes from `lstm_options_create` and was not destroyed.
 */
void lstm_options_destroy(struct LstmOptions *options);

/**
 * The text about the last call of this thread that failed: what was expected, what was given, and what to do. Empty if
 * none failed. Valid until the next call of this thread that fails. `lstm_stream_step`, `lstm_stream_run` and their
 * forms for tokens set no text.
 */
const char *lstm_last_error(void);

/**
 * A few words about a status, such as `invalid argument`. The text is static.
 */
const char *lstm_status_text(int32_t status);

/**
 * Creates a stream of `batch` sequences in the model's initial states, which `lstm_stream_destroy` frees. The model may
 * be destroyed before it. A model with a reverse direction can't be streamed.
 *
 * # Safety
 * `model` is NULL or valid; `out` is NULL or can be written.
 */
enum LstmStatus lstm_stream_create(const struct LstmModel *model, size_t batch, struct LstmStream **out);

/**
 * Runs one time step: reads `x` of shape `(batch, input size)` and writes `y` of shape `(batch, output size)`, which do
 * not overlap. For real-time threads, if `lstm_model_is_real_time`: a call that succeeds then does not allocate, lock or
 * enter the operating system. Sets no text for `lstm_last_error`.
 *
 * After `LSTM_STATUS_INVALID_ARGUMENT` the states are unchanged. After another error they may be lost; then all calls
 * fail until `lstm_stream_reset` or `lstm_stream_set_state`.
 *
 * # Safety
 * `stream` is NULL or valid, and no other thread uses it; `x` and `y` are NULL or have the described number of values.
 */
enum LstmStatus lstm_stream_step(struct LstmStream *stream,
                                 const float *x,
                                 float *y);

/**
 * Runs `steps` time steps, one after the other: `x` has the shape `(steps, batch, input size)` and `y` the shape
 * `(steps, batch, output size)`. If the device fails, the steps before have been written. Otherwise as
 * `lstm_stream_step`.
 *
 * # Safety
 * As for `lstm_stream_step`.
 */
enum LstmStatus lstm_stream_run(struct LstmStream *stream, const float *x, float *y, size_t steps);

/**
 * Runs one time step of a model that reads tokens, one for each sequence. Otherwise as `lstm_stream_step`. A token that
 * the model does not have is `LSTM_STATUS_INVALID_ARGUMENT`.
 *
 * # Safety
 * As for `lstm_stream_step`.
 */
enum LstmStatus lstm_stream_step_tokens(struct LstmStream *stream, const int64_t *tokens, float *y);

/**
 * Runs `steps` time steps of a model that reads tokens: `tokens` has the shape `(steps, batch)`. A token that the model
 * does not have is found before the first step. Otherwise as `lstm_stream_run`.
 *
 * # Safety
 * As for `lstm_stream_step`.
 */
enum LstmStatus lstm_stream_run_tokens(struct LstmStream *stream, const int64_t *tokens, float *y, size_t steps);

/**
 * Sets the states of all sequences to the model's initial states.
 *
 * # Safety
 * `stream` is NULL or valid, and no other thread uses it.
 */
enum LstmStatus lstm_stream_reset(struct LstmStream *stream);

/**
 * Number of floats of the states of the stream, in the order that `lstm_model_state_size` describes. 0 for NULL.
 *
 * # Safety
 * `stream` is NULL or valid.
 */
size_t lstm_stream_state_size(const struct LstmStream *stream);

/**
 * Copies the states of all sequences to `state`, an array of `size` floats. `size` is `lstm_stream_state_size`.
 *
 * # Safety
 * `stream` is NULL or valid, and no other thread uses it; `state` is NULL or has `size` floats.
 */
enum LstmStatus lstm_stream_get_state(struct LstmStream *stream, float *state, size_t size);

/**
 * Replaces the states of all sequences by those in `state`, an array of `size` floats. `size` is
 * `lstm_stream_state_size`. The states are unchanged after an error.
 *
 * # Safety
 * As for `lstm_stream_get_state`.
 */
enum LstmStatus lstm_stream_set_state(struct LstmStream *stream, const float *state, size_t size);

/**
 * Destroys a stream. Does nothing for NULL.
 *
 * # Safety
 * `stream` is NULL, or comes from this library and was not destroyed.
 */
void lstm_stream_destroy(struct LstmStream *stream);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LSTM_H */
