// Attributes of people from C++, with OpenVINO and nothing of Python at run time.
//
//     vlm-par export your-name/your-checkpoint --to openvino --patch-grid 16x8 --out exported
//     cmake -S examples/elsewhere -B build && cmake --build build
//     build/attributes exported/model.xml exported/labels.txt person.ppm
//
// labels.txt is written as docs/elsewhere.md shows. A picture is a binary PPM (P6), so that this file needs no library for images; a program
// of yours has decoded pictures anyway. Prints a line per attribute: name, answer, probability of that answer.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <openvino/openvino.hpp>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

constexpr int kPatch = 16;
constexpr int kChannels = 3;

struct Picture {
  int height, width;
  std::vector<float> values;  // height x width x 3, 0 to 255
};

Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int width = 0, height = 0, most = 0;
  file >> magic >> width >> height >> most;
  if (!file || magic != "P6" || most != 255) throw std::runtime_error(path + ": expected a binary PPM with 8 bits");
  file.get();
  std::vector<std::uint8_t> bytes(static_cast<size_t>(width) * height * kChannels);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), bytes.size())) throw std::runtime_error(path + ": too short");
  return {height, width, {bytes.begin(), bytes.end()}};
}

// Linear interpolation over as many pixels as one new pixel covers (antialias), along `length` elements `stride` apart.
std::vector<float> resize_axis(const std::vector<float>& values, int before, int length, int after, int size) {
  std::vector<float> resized(static_cast<size_t>(before) * size * after);
  const double scale = static_cast<double>(length) / size, support = std::max(1.0, scale);
  for (int target = 0; target < size; ++target) {
    const double center = (target + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - support + 0.5));
    const int last = std::min(length, static_cast<int>(center + support + 0.5));
    std::vector<double> weights;
    double total = 0;
    for (int source = first; source < last; ++source) {
      weights.push_back(std::max(0.0, 1 - std::abs((source - center + 0.5) / support)));
      total += weights.back();
    }
    for (int i = 0; i < before; ++i)
      for (int k = 0; k < after; ++k) {
        double sum = 0;
        for (int source = first; source < last; ++source)
          sum += weights[source - first] * values[(static_cast<size_t>(i) * length + source) * after + k];
        // Grey levels are whole numbers after each axis, as in Pillow.
        resized[(static_cast<size_t>(i) * size + target) * after + k] = std::floor(sum / total + 0.5);
      }
  }
  return resized;
}

// What the model reads: rows x columns patches, each 16 x 16 x 3 values from -1 to 1.
std::vector<float> to_patches(const Picture& picture, int rows, int columns) {
  const int height = rows * kPatch, width = columns * kPatch;
  auto wide = resize_axis(picture.values, picture.height, picture.width, kChannels, width);
  auto pixels = resize_axis(wide, 1, picture.height, width * kChannels, height);
  std::vector<float> patches;
  patches.reserve(pixels.size());
  for (int row = 0; row < rows; ++row)
    for (int column = 0; column < columns; ++column)
      for (int y = 0; y < kPatch; ++y)
        for (int x = 0; x < kPatch * kChannels; ++x)
          patches.push_back(pixels[((row * kPatch + y) * width + column * kPatch) * kChannels + x] / 127.5f - 1);
  return patches;
}

int main(int count, char** words) try {
  if (count < 4) throw std::runtime_error("usage: attributes model.xml labels.txt person.ppm [more.ppm ...]");
  // labels.txt: rows and columns of patches, then an attribute per line: name, labels, with tabs between.
  std::ifstream file(words[2]);
  int rows = 0, columns = 0;
  if (!(file >> rows >> columns)) throw std::runtime_error(std::string(words[2]) + ": expected rows and columns");
  std::vector<std::vector<std::string>> attributes;
  for (std::string line; std::getline(file, line);) {
    if (line.empty()) continue;
    std::istringstream cells(line);
    attributes.emplace_back();
    for (std::string cell; std::getline(cells, cell, '\t');) attributes.back().push_back(cell);
  }

  ov::Core core;
  // Without this a CPU that has bfloat16 computes in it; leave it out for a file that was exported with --bf16.
  auto model = core.compile_model(words[1], "CPU", ov::hint::inference_precision(ov::element::f32));
  auto request = model.create_infer_request();
  for (int index = 3; index < count; ++index) {
    auto patches = to_patches(read_ppm(words[index]), rows, columns);
    const size_t number = static_cast<size_t>(rows) * columns;
    ov::Tensor input(ov::element::f32, {1, number, patches.size() / number}, patches.data());
    request.set_tensor("pixel_values", input);
    request.infer();
    const auto decided = request.get_tensor("decided"), probabilities = request.get_tensor("probabilities");
    const size_t labels = probabilities.get_shape()[2];
    for (size_t a = 0; a < attributes.size(); ++a) {
      const auto answer = decided.data<const std::int64_t>()[a];
      std::cout << attributes[a][0] << '\t' << attributes[a].at(1 + answer) << '\t' << std::fixed
                << std::setprecision(4) << probabilities.data<const float>()[a * labels + answer] << '\n';
    }
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
