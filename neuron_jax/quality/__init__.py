"""What rounding a model's weights does to its predictions: measured on one text, against the same model in float32."""
